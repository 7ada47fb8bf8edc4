//! The engine on the simulation: one history, many on all processors, and the smallest story of one that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keepmark_engine::Surroundings;
use keepmark_engine::backup::{BackupJob, backup};
use keepmark_engine::push::Mode;
use keepmark_engine::revert::{RevertJob, revert};
use keepmark_model::audit::AuditWish;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::plan::Request;
use keepmark_model::revert::Wish;
use keepmark_model::seam::{Freeze, Hypervisor, Result, Silent, Store};
use keepmark_testkit::sim::{Break, Kinds, Outcome, Program, STEPS, Senses, Stats, history, minimise, play};

/// keepmark's backup, as the simulation calls it.
fn keepmark(vm: &mut dyn Hypervisor, store: &dyn Store, request: &Request, audit: AuditWish, senses: &Senses<'_>) -> Result<()> {
    let job = BackupJob {
        request: request.clone(),
        freeze: Freeze::IfPossible { deadline: Duration::from_secs(1) },
        mode: Mode::Pull,
        audit,
        hold_checkpoints: None,
        tags: Vec::new(),
        program: "simulation".to_owned(),
    };
    let world = Surroundings { now: senses.now, elapsed: senses.elapsed, random: senses.random };
    backup(vm, store, &job, world, &Silent).map(drop)
}

/// keepmark's revert, as the simulation calls it.
fn go_back(vm: &mut dyn Hypervisor, store: &dyn Store, target: &StoredBackup, senses: &Senses<'_>) -> Result<()> {
    let job = RevertJob { target: target.clone(), wish: Wish::default(), safety: None };
    let world = Surroundings { now: senses.now, elapsed: senses.elapsed, random: senses.random };
    revert(vm, store, &job, world, &Silent).map(drop)
}

const PROGRAM: Program<'static> = Program { backup: &keepmark, revert: &go_back };

/// Plays the history of a seed.
pub fn play_seed(seed: u64, kinds: Kinds, broken: Option<Break>) -> Outcome {
    play(seed, &history(seed, kinds), PROGRAM, broken, false)
}

/// What a failing seed does, in words, after everything was left out that is not needed for it.
pub fn story(seed: u64, kinds: Kinds, broken: Option<Break>) -> String {
    let fails = |steps: &[_]| play(seed, steps, PROGRAM, broken, false).violation.map(|(end, _)| end);
    let steps = minimise(&history(seed, kinds), &fails);
    let told = play(seed, &steps, PROGRAM, broken, true);
    let mut text = format!("seed {seed}, smallest story ({} of {STEPS} steps):\n", steps.len());
    told.story.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
    let what = told.violation.map(|(_, what)| what).unwrap_or_default();
    text + "  => " + &what + "\n"
}

/// How many histories to play, at most.
#[derive(Clone, Copy)]
pub struct Campaign {
    /// The first seed; the others follow.
    pub first: u64,
    /// How many seeds.
    pub seeds: u64,
    /// How long.
    pub longest: Option<Duration>,
    /// Which rule of a driver or a store is broken on purpose.
    pub broken: Option<Break>,
}

/// What a campaign found.
#[derive(Default)]
pub struct Found {
    /// Histories that were played.
    pub histories: u64,
    /// What happened in them.
    pub stats: Stats,
    /// The lowest failing seed that was seen, and what was wrong.
    pub failure: Option<(u64, String)>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Campaign {
    /// Plays the histories on all processors, until one fails.
    pub fn run(&self) -> Found {
        let (started, next, found) = (Instant::now(), AtomicU64::new(0), Mutex::new(Found::default()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.work(started, &next, &found));
            }
        });
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Found { elapsed: started.elapsed(), ..found }
    }

    fn work(&self, started: Instant, next: &AtomicU64, found: &Mutex<Found>) {
        let found = || found.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let over = self.longest.is_some_and(|longest| started.elapsed() > longest);
            if number >= self.seeds || over || found().failure.is_some() {
                return;
            }
            let seed = self.first.wrapping_add(number);
            found().take(seed, play_seed(seed, Kinds::All, self.broken));
        }
    }
}

impl Found {
    fn take(&mut self, seed: u64, outcome: Outcome) {
        self.histories += 1;
        self.stats.add(&outcome.stats);
        let is_lowest = self.failure.as_ref().is_none_or(|(known, _)| seed < *known);
        if let Some((_, what)) = outcome.violation.filter(|_| is_lowest) {
            self.failure = Some((seed, what));
        }
    }

    /// The numbers, in one sentence each.
    pub fn summary(&self) -> String {
        let Stats {
            steps,
            runs,
            effects,
            killed,
            failed,
            reverted,
            full,
            differential,
            incremental,
            resync,
            contradicted,
            audit_only,
            compared,
        } = self.stats;
        let speed = self.histories as f64 / self.elapsed.as_secs_f64().max(1e-9);
        format!(
            "{} histories, {steps} steps, {speed:.0} histories/s\n{runs} runs of keepmark with {effects} effects: {killed} killed, {failed} failed; {reverted} went back in place\n\
             disks captured: {full} full, {differential} differential, {incremental} incremental, {resync} resynced ({contradicted} of them since a check contradicted the bitmap)\n\
             {compared} comparisons with the truth; {audit_only} disks differ by silent edits that only the audit's sample could have found",
            self.histories
        )
    }
}
