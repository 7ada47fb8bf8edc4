//! Every interleaving of two writers, a deleter, two pruners and their deaths, step by step, within a small scope: no listed backup ever
//! names a blob that is in no pack that can be read. Each rule of the protocol is left out in turn: the checker must then find the backup that is lost.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A set of small numbers: packs, marks, ...
type Set = u8;

/// Rules that can be left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// A writer uses nothing that a mark names.
    MarksAreRead,
    /// The lease is written before marks are read.
    LeaseFirst,
    /// A writer says in its lease which marks it knows, and is waited for otherwise.
    UnawareAreWaitedFor,
    /// Usage is found again when everybody knows the mark.
    SecondLook,
    /// Snapshots are listed for it after leases were, not before.
    LeasesBeforeSnapshots,
    /// The index goes before packs do.
    IndexFirst,
    /// The mark goes last.
    MarkLast,
    /// Who was taken for dead and is not publishes nothing.
    LeaseIsChecked,
    /// Copies are indexed before what they were copied from is marked.
    CopyFirst,
    /// A pruner that is taken for dead removes nothing more.
    PrunerIsChecked,
    /// Of what lies in two packs, one goes only when the other was read.
    KeptIsRead,
}

#[derive(Clone)]
struct Scope {
    without: Option<Rule>,
    writers: usize,
    pruners: usize,
    /// Backups that are begun.
    backups: u8,
    /// Backups that are deleted.
    deletions: u8,
    /// Prunes that are begun.
    prunes: u8,
    /// Deaths; and lives that are taken for dead.
    deaths: u8,
    /// Packs that cannot be read. The first pruner's host has found that out, the second one's has not.
    damaged: Set,
}

/// There are two contents, and each pack has one of them: every wanted blob is either found in a pack or stored in a new one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pack {
    content: u8,
    there: bool,
    indexed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mark {
    packs: Set,
    there: bool,
}

/// A lease, by its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    there: bool,
    knows: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// Its lease is there (or marks were read too early).
    Leased {
        wants: u8,
        early: Option<Set>,
    },
    /// It knows these marks.
    Knowing {
        wants: u8,
        marks: Set,
    },
    /// It says so in its lease.
    Saying {
        wants: u8,
        marks: Set,
    },
    /// It has read the index: these packs, except those that are marked.
    Seeing {
        wants: u8,
        view: Set,
    },
    /// It counts on this pack; perhaps it wrote it, and has to index it.
    Having {
        pack: usize,
        fresh: bool,
    },
    /// All is there but the snapshot.
    Ready {
        pack: usize,
    },
    /// It saw its lease.
    Checked {
        pack: usize,
    },
    /// The backup exists, and so does the lease still.
    Published,
    /// It is gone, its lease is not.
    Dead,
}

/// What a pruner found at its first look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Look {
    /// The snapshots that it saw.
    seen: Set,
    /// Packs that nothing uses, or of which everything was copied.
    unused: Set,
    /// Packs in marks that something uses.
    kept: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Pruner {
    Idle,
    Leased,
    /// It looked; a pack is to be copied.
    Looked {
        look: Look,
        copy: Option<usize>,
    },
    /// The copy is written, and has to be indexed.
    Copied {
        look: Look,
        copy: usize,
        to: usize,
    },
    ToMark {
        look: Look,
    },
    Marked {
        look: Look,
        listed: Option<Set>,
    },
    /// It saw everybody's lease: these marks are known to all. Where the rule is left out, snapshots were listed before.
    Ripe {
        look: Look,
        marks: Set,
        listed: Option<Set>,
    },
    /// These packs go, in two steps, and then the marks.
    Sweep {
        marks: Set,
        packs: Set,
        done: u8,
    },
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    packs: Vec<Pack>,
    marks: Vec<Mark>,
    /// Snapshots: the content each has, and whether it is listed.
    snapshots: Vec<(u8, bool)>,
    writers: Vec<(Writer, Lease)>,
    pruners: Vec<(Pruner, Lease)>,
    backups: u8,
    deletions: u8,
    prunes: u8,
    deaths: u8,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    /// A writer begins a backup of this content.
    Begin(usize, u8),
    Write(usize),
    Delete(usize),
    Prune(usize),
    Die(usize),
    PrunerDies(usize),
    /// Its lease is removed though it lives.
    Bury(usize),
    BuryPruner(usize),
}

const NO_LEASE: Lease = Lease { there: false, knows: 0 };

fn has(set: Set, number: usize) -> bool {
    set & 1 << number != 0
}

fn all(set: Set) -> impl Iterator<Item = usize> {
    (0..8).filter(move |number| has(set, *number))
}

fn set(numbers: impl Iterator<Item = usize>) -> Set {
    numbers.fold(0, |set, number| set | 1 << number)
}

impl World {
    fn marks(&self) -> Set {
        set((0..self.marks.len()).filter(|mark| self.marks[*mark].there))
    }

    fn packs_of(&self, marks: Set) -> Set {
        all(marks).fold(0, |packs, mark| packs | self.marks[mark].packs)
    }

    fn listed(&self) -> Set {
        set((0..self.snapshots.len()).filter(|snapshot| self.snapshots[*snapshot].1))
    }

    /// Contents of snapshots.
    fn contents(&self, snapshots: Set) -> Vec<u8> {
        all(snapshots).map(|snapshot| self.snapshots[snapshot].0).collect()
    }

    fn indexed(&self) -> impl Iterator<Item = usize> {
        (0..self.packs.len()).filter(|pack| self.packs[*pack].indexed)
    }

    /// Packs in the index that are there.
    fn usable(&self) -> impl Iterator<Item = usize> {
        self.indexed().filter(|pack| self.packs[*pack].there)
    }

    fn add_pack(&mut self, content: u8) -> usize {
        self.packs.push(Pack { content, there: true, indexed: false });
        self.packs.len() - 1
    }

    /// The packs that stay for what these snapshots need: for each content one, rather none of `avoided`; all if that one cannot be read.
    fn needed(&self, snapshots: Set, avoided: Set, scope: &Scope) -> Set {
        let places = |content: u8| self.usable().filter(move |pack| self.packs[*pack].content == content);
        let stay = |content: u8| match places(content).min_by_key(|pack| has(avoided, *pack)) {
            Some(pack) if has(scope.damaged, pack) && scope.keeps(Rule::KeptIsRead) => set(places(content)),
            place => set(place.into_iter()),
        };
        self.contents(snapshots).into_iter().fold(0, |packs, content| packs | stay(content))
    }

    fn write(&mut self, number: usize, scope: &Scope) {
        let (writer, lease) = self.writers[number].clone();
        self.writers[number] = match writer {
            Writer::Idle | Writer::Dead => return,
            Writer::Leased { wants, early: None } => (Writer::Knowing { wants, marks: self.marks() }, lease),
            Writer::Leased { wants, early: Some(marks) } => (Writer::Saying { wants, marks }, Lease { there: true, knows: marks }),
            // Writing the lease anew fails if it was removed.
            Writer::Knowing { .. } if !lease.there => (Writer::Idle, NO_LEASE),
            Writer::Knowing { wants, marks } => (Writer::Saying { wants, marks }, Lease { there: true, knows: marks }),
            Writer::Saying { wants, marks } => {
                let marked = if scope.keeps(Rule::MarksAreRead) { self.packs_of(marks) } else { 0 };
                (Writer::Seeing { wants, view: set(self.indexed()) & !marked }, lease)
            }
            Writer::Seeing { wants, view } => (self.find_or_store(wants, view), lease),
            // Whoever was taken for dead must not index what was removed as garbage.
            Writer::Having { .. } | Writer::Ready { .. } if scope.keeps(Rule::LeaseIsChecked) && !lease.there => (Writer::Idle, NO_LEASE),
            Writer::Having { pack, fresh } => {
                self.packs[pack].indexed |= fresh;
                (Writer::Ready { pack }, lease)
            }
            Writer::Ready { pack } => (Writer::Checked { pack }, lease),
            Writer::Checked { pack } => {
                self.snapshots.push((self.packs[pack].content, true));
                (Writer::Published, lease)
            }
            Writer::Published => (Writer::Idle, NO_LEASE),
        };
    }

    fn find_or_store(&mut self, wants: u8, view: Set) -> Writer {
        match all(view).find(|pack| self.packs[*pack].content == wants) {
            Some(pack) => Writer::Having { pack, fresh: false },
            None => Writer::Having { pack: self.add_pack(wants), fresh: true },
        }
    }

    fn is_another_pruner_there(&self, number: usize) -> bool {
        self.pruners.iter().enumerate().any(|(other, (_, lease))| other != number && lease.there)
    }

    fn prune(&mut self, number: usize, scope: &Scope) {
        let (pruner, lease) = self.pruners[number].clone();
        // Each step that changes anything looks whether the lease is there.
        if pruner != Pruner::Idle && scope.keeps(Rule::PrunerIsChecked) && !lease.there {
            self.pruners[number] = (Pruner::Idle, NO_LEASE);
            return;
        }
        let next = match pruner {
            Pruner::Dead => return,
            Pruner::Idle => {
                if self.is_another_pruner_there(number) {
                    return;
                }
                self.prunes += 1;
                self.pruners[number] = (Pruner::Leased, Lease { there: true, knows: Set::MAX });
                return;
            }
            Pruner::Leased => self.look(number, scope),
            Pruner::Looked { look, copy: Some(copy) } => {
                let to = self.add_pack(self.packs[copy].content);
                if scope.keeps(Rule::CopyFirst) {
                    Pruner::Copied { look, copy, to }
                } else {
                    Pruner::ToMark { look: Look { unused: look.unused | 1 << copy, ..look } }
                }
            }
            Pruner::Looked { look, copy: None } | Pruner::ToMark { look } => {
                if look.unused != 0 {
                    self.marks.push(Mark { packs: look.unused, there: true });
                }
                Pruner::Marked { look, listed: None }
            }
            Pruner::Copied { look, copy, to } => {
                self.packs[to].indexed = true;
                Pruner::ToMark { look: Look { unused: look.unused | 1 << copy, ..look } }
            }
            Pruner::Marked { look, listed: None } if !scope.keeps(Rule::LeasesBeforeSnapshots) => {
                Pruner::Marked { look, listed: Some(self.listed()) }
            }
            Pruner::Marked { look, listed } => {
                let known = |mark: &usize| self.writers.iter().all(|(_, lease)| !lease.there || has(lease.knows, *mark));
                let ripe = set(all(self.marks()).filter(|mark| !scope.keeps(Rule::UnawareAreWaitedFor) || known(mark)));
                Pruner::Ripe { look, marks: ripe, listed }
            }
            Pruner::Ripe { look, marks, listed } => {
                let now = if scope.keeps(Rule::SecondLook) { listed.unwrap_or_else(|| self.listed()) } else { look.seen };
                let packs = self.packs_of(marks) & !look.kept;
                // What was there at the first look has its places elsewhere since; only what is new is looked at.
                Pruner::Sweep { marks, packs: packs & !self.needed(now & !look.seen, packs, scope), done: 0 }
            }
            Pruner::Sweep { marks, packs, done } => self.sweep(marks, packs, done, scope),
        };
        let lease = if next == Pruner::Idle { NO_LEASE } else { lease };
        self.pruners[number] = (next, lease);
    }

    fn look(&self, number: usize, scope: &Scope) -> Pruner {
        let marked = self.packs_of(self.marks());
        let seen = self.listed();
        let known_damage = if number == 0 { scope.damaged } else { 0 };
        let needed = self.needed(seen, marked | known_damage, scope);
        let known = set((0..self.packs.len()).filter(|pack| self.packs[*pack].there || self.packs[*pack].indexed));
        // A pack that is used is copied, as a wasteful one would be, if there is room in the scope.
        let copy = all(needed & !marked & !scope.damaged).next().filter(|_| self.packs.len() < 6);
        Pruner::Looked { look: Look { seen, unused: known & !needed & !marked, kept: needed & marked }, copy }
    }

    fn sweep(&mut self, marks: Set, packs: Set, done: u8, scope: &Scope) -> Pruner {
        let mut index = |world: &mut Self| all(packs).for_each(|pack| world.packs[pack].indexed = false);
        let mut files = |world: &mut Self| all(packs).for_each(|pack| world.packs[pack].there = false);
        let mut over = |world: &mut Self| all(marks).for_each(|mark| world.marks[mark].there = false);
        let mut steps: Vec<&mut dyn FnMut(&mut Self)> = match (scope.keeps(Rule::IndexFirst), scope.keeps(Rule::MarkLast)) {
            (true, true) => vec![&mut index, &mut files, &mut over],
            (false, _) => vec![&mut files, &mut index, &mut over],
            (true, false) => vec![&mut over, &mut index, &mut files],
        };
        steps[usize::from(done)](self);
        if done < 2 { Pruner::Sweep { marks, packs, done: done + 1 } } else { Pruner::Idle }
    }

    /// Whether everything that a listed backup needs is in a pack of the index that is there and can be read.
    fn is_whole(&self, damaged: Set) -> bool {
        let is_in = |pack: usize, content: u8| self.packs[pack].content == content && !has(damaged, pack);
        self.contents(self.listed()).into_iter().all(|content| self.usable().any(|pack| is_in(pack, content)))
    }

    /// Whether the index names only packs that are there.
    fn is_index_right(&self) -> bool {
        self.packs.iter().all(|pack| pack.there || !pack.indexed)
    }
}

impl Scope {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn begin(&self, world: &mut World, writer: usize, wants: u8) {
        world.backups += 1;
        world.writers[writer] = if self.keeps(Rule::LeaseFirst) {
            (Writer::Leased { wants, early: None }, Lease { there: true, knows: 0 })
        } else {
            (Writer::Leased { wants, early: Some(world.marks()) }, NO_LEASE)
        };
    }
}

impl Model for Scope {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            packs: vec![Pack { content: 0, there: true, indexed: true }; if self.damaged == 0 { 1 } else { 2 }],
            marks: vec![],
            snapshots: vec![(0, true)],
            writers: vec![(Writer::Idle, NO_LEASE); self.writers],
            pruners: vec![(Pruner::Idle, NO_LEASE); self.pruners],
            backups: 0,
            deletions: 0,
            prunes: 0,
            deaths: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let room = world.packs.len() < 8;
        for (number, (writer, lease)) in world.writers.iter().enumerate() {
            if *writer == Writer::Idle && world.backups < self.backups {
                actions.push(Action::Begin(number, 0));
            } else if *writer != Writer::Idle && *writer != Writer::Dead && room {
                actions.push(Action::Write(number));
                if world.deaths < self.deaths {
                    actions.push(Action::Die(number));
                }
            }
            // The dead are buried after a while; and, if clocks or networks are bad enough, the living. One that has looked at its lease
            // cannot be overtaken: its upload is swept away with the lease.
            let may_be_buried = *writer == Writer::Dead || world.deaths < self.deaths;
            if lease.there && may_be_buried && !matches!(writer, Writer::Checked { .. } | Writer::Published) {
                actions.push(Action::Bury(number));
            }
        }
        actions
            .extend((0..world.snapshots.len()).filter(|s| world.snapshots[*s].1 && world.deletions < self.deletions).map(Action::Delete));
        for (number, (pruner, lease)) in world.pruners.iter().enumerate() {
            if *pruner != Pruner::Dead && (*pruner != Pruner::Idle || world.prunes < self.prunes) {
                actions.push(Action::Prune(number));
            }
            if !matches!(pruner, Pruner::Idle | Pruner::Dead) && world.deaths < self.deaths {
                actions.push(Action::PrunerDies(number));
            }
            if lease.there && (*pruner == Pruner::Dead || world.deaths < self.deaths) {
                actions.push(Action::BuryPruner(number));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Begin(writer, wants) => self.begin(&mut next, writer, wants),
            Action::Write(writer) => next.write(writer, self),
            Action::Delete(snapshot) => {
                next.deletions += 1;
                next.snapshots[snapshot].1 = false;
            }
            Action::Prune(pruner) => next.prune(pruner, self),
            Action::Die(writer) => {
                next.deaths += 1;
                next.writers[writer].0 = Writer::Dead;
            }
            Action::PrunerDies(pruner) => {
                next.deaths += 1;
                next.pruners[pruner].0 = Pruner::Dead;
            }
            Action::Bury(writer) => {
                next.deaths += u8::from(next.writers[writer].0 != Writer::Dead);
                next.writers[writer].1.there = false;
                if next.writers[writer].0 == Writer::Dead {
                    next.writers[writer].0 = Writer::Idle;
                }
            }
            Action::BuryPruner(pruner) => {
                next.deaths += u8::from(next.pruners[pruner].0 != Pruner::Dead);
                next.pruners[pruner].1.there = false;
                if next.pruners[pruner].0 == Pruner::Dead {
                    next.pruners[pruner].0 = Pruner::Idle;
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every listed backup is whole", |scope: &Self, world: &World| world.is_whole(scope.damaged)),
            Property::always("the index names only packs that are there", |_: &Self, world: &World| world.is_index_right()),
            Property::sometimes("something goes", |_: &Self, world: &World| world.packs.iter().any(|pack| !pack.there)),
            Property::sometimes("a used pack is copied and goes", |_: &Self, world: &World| !world.packs[0].there && world.snapshots[0].1),
            Property::sometimes("a writer uses what is marked", |_: &Self, world: &World| {
                let marked = world.packs_of(world.marks());
                world.writers.iter().any(|(writer, _)| matches!(writer, Writer::Ready { pack } if has(marked, *pack)))
            }),
        ]
    }
}

fn scope(without: Option<Rule>) -> Scope {
    Scope { without, writers: 2, pruners: 2, backups: 2, deletions: 2, prunes: 2, deaths: 1, damaged: 0 }
}

/// The first of two packs with the same content cannot be read: one host has found that out and stored it again.
fn damaged_scope(without: Option<Rule>) -> Scope {
    Scope { writers: 1, backups: 1, deletions: 1, damaged: 1, ..scope(without) }
}

const LOSSES: [&str; 2] = ["every listed backup is whole", "the index names only packs that are there"];

#[test]
fn no_interleaving_loses_the_good_copy_of_what_is_damaged() {
    let checker = damaged_scope(None).checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    LOSSES.iter().for_each(|property| assert!(checker.discovery(property).is_none(), "not {property:?}"));
    assert!(checker.discovery("something goes").is_some());
}

#[test]
fn no_interleaving_loses_what_a_backup_needs() {
    let checker = scope(None).checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 50_000, "the scope is not that small");
}

#[test]
fn the_checker_notices_each_rule_that_is_left_out() {
    use Rule::{
        CopyFirst, IndexFirst, KeptIsRead, LeaseFirst, LeaseIsChecked, LeasesBeforeSnapshots, MarkLast, MarksAreRead, PrunerIsChecked,
        SecondLook, UnawareAreWaitedFor,
    };
    let mut unnoticed = Vec::new();
    for rule in [
        MarksAreRead,
        LeaseFirst,
        UnawareAreWaitedFor,
        SecondLook,
        LeasesBeforeSnapshots,
        IndexFirst,
        MarkLast,
        LeaseIsChecked,
        CopyFirst,
        PrunerIsChecked,
        KeptIsRead,
    ] {
        let scope = if rule == KeptIsRead { damaged_scope } else { scope };
        let checker = scope(Some(rule)).checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = LOSSES.into_iter().find_map(|property| Some((property, checker.discovery(property)?)));
        match found {
            Some((property, path)) => println!("{rule:?}: not {property:?} after {:?}", path.into_actions()),
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
