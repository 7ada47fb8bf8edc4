//! What happens in the world when a backup is published: it is compared with the truth of its moment.

use keepmark_model::CheckpointName;

use super::state::{Inherited, Published};
use crate::sim::image::{Mask, mask};
use crate::sim::machine::FrozenCopy;
use crate::sim::world::World;

impl World {
    /// What no order of events in keepmark may lead to: the base's checkpoint goes, and nothing is published yet.
    pub(super) fn remove_base(&mut self, place: usize, successor: Option<&CheckpointName>) {
        let machine = self.run.as_ref().map_or(0, |run| run.machine);
        let store = &self.stores[place].id;
        let layers = self.machines[machine].disks.iter_mut().flat_map(|disk| &mut disk.layers);
        let is_base = |name: &str| CheckpointName::parse(name).is_ok_and(|name| name.is_for(store) && Some(&name) != successor);
        layers.for_each(|layer| layer.bitmaps.retain(|bitmap| !is_base(&bitmap.name)));
    }

    /// The backup exists from now on; the truth of its moment goes beside it.
    pub(super) fn publish(&mut self, place: usize, mut published: Published) {
        let Some(run) = &self.run else { return };
        let frozen = run.moment.clone().unwrap_or_default();
        let state = &self.stores[place];
        let mut wrong = run.torn.then(|| "its disks are of different moments".to_owned());
        let mut audit_only = 0;
        for disk in &mut published.disks {
            let Some(copy) = frozen.iter().find(|copy| copy.name == disk.name) else {
                wrong = Some(format!("disk {} was published without a moment", disk.name));
                continue;
            };
            disk.truth = copy.cells.iter().map(|(value, _)| *value).collect();
            if copy.contradicted && published.backup.manifest.disk(&disk.name).is_some_and(|disk| disk.base.is_some()) {
                wrong = Some(format!("disk {}: an audit has contradicted its bitmap, and it is believed again", disk.name));
            }
            let differing = if disk.truth.len() == disk.atoms { state.differing(disk) } else { Mask::MAX };
            let undetectable = disk.inherited.as_ref().map_or(0, |base| undetectable(copy, disk.unit, base, run.unaudited));
            // What is not durable yet is judged by the sync that follows, or by the power cut that comes first.
            if differing & !undetectable != 0 {
                let stored = state.content(disk);
                wrong = Some(format!(
                    "disk {} is published with atoms {:#x} not as they were\n     truth {:?}\n    stored {stored:?}",
                    disk.name,
                    differing & !undetectable,
                    copy.cells.iter().map(|(value, hole)| if *hole { -1 } else { i64::from(*value) }).collect::<Vec<_>>()
                ));
            }
            disk.excused = differing & undetectable;
            audit_only += u64::from(disk.excused != 0);
        }
        self.stats.audit_only += audit_only;
        for disk in &published.backup.manifest.disks {
            self.stats.count(disk);
        }
        if let Some(wrong) = wrong {
            self.wrong(|| wrong);
        }
        if self.is_telling() {
            let kinds: Vec<String> = published
                .backup
                .manifest
                .disks
                .iter()
                .map(|disk| format!("{}: {} ({})", disk.name, disk.kind.word(), disk.reason))
                .collect();
            self.tell(format!("backup {} exists in store {place}: {}", published.backup.id, kinds.join("; ")));
        }
        self.stores[place].backups.push(published);
        self.stores[place].published += 1;
        self.run.iter_mut().for_each(|run| run.published = true);
    }
}

/// Where a backup may differ from the truth, since only the audit's sample can find it: an edit past QEMU, after the base's
/// bitmap began or inherited from the base, unless it made a hole of a whole clean chunk that held data in the base. That is a
/// contradiction that the allocation check sees every time, unless the user switched the audit off.
fn undetectable(copy: &FrozenCopy, unit: usize, base: &Inherited, unaudited: bool) -> Mask {
    let mut allowed = copy.missed | base.excused;
    for (number, cells) in copy.cells.chunks(unit).enumerate() {
        let held_data = base.held.get(number).is_some_and(|held| *held);
        if !unaudited && held_data && cells.iter().all(|(_, hole)| *hole) {
            allowed &= !mask(number * unit, (number + 1) * unit);
        }
    }
    allowed
}
