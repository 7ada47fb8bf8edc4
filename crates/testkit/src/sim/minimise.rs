//! Minimising: leaving out steps and faults of a failing history as long as it still fails.

use super::history::{Order, Step};
use super::world::Fault;

/// The shortest history that was found to fail still; `fails` says after how many steps one does.
pub fn minimise(steps: &[Step], fails: &dyn Fn(&[Step]) -> Option<usize>) -> Vec<Step> {
    let mut current = steps.to_vec();
    if let Some(end) = fails(&current) {
        current.truncate(end);
    }
    loop {
        let before = size(&current);
        drop_steps(&mut current, fails);
        drop_faults(&mut current, fails);
        if size(&current) == before {
            return current;
        }
    }
}

fn size(steps: &[Step]) -> usize {
    let faults = |step: &Step| match step {
        Step::Happen(_) => 1,
        Step::Backup(order) => 1 + order.faults.len() + order.others.len(),
    };
    steps.iter().map(faults).sum()
}

fn drop_steps(current: &mut Vec<Step>, fails: &dyn Fn(&[Step]) -> Option<usize>) {
    let mut width = (current.len() / 2).max(1);
    loop {
        let mut start = 0;
        while start < current.len() {
            let end = (start + width).min(current.len());
            let shorter = [&current[..start], &current[end..]].concat();
            match fails(&shorter) {
                Some(end) => *current = shorter[..end].to_vec(),
                None => start += width,
            }
        }
        if width == 1 {
            return;
        }
        width /= 2;
    }
}

fn drop_faults(current: &mut Vec<Step>, fails: &dyn Fn(&[Step]) -> Option<usize>) {
    for place in 0..current.len() {
        drop_each(current, place, |order| &mut order.faults, fails);
        drop_each(current, place, |order| &mut order.others, fails);
    }
}

fn drop_each(
    current: &mut Vec<Step>,
    place: usize,
    of: impl Fn(&mut Order) -> &mut Vec<(u32, Fault)>,
    fails: &dyn Fn(&[Step]) -> Option<usize>,
) {
    let mut fault = 0;
    loop {
        let mut fewer = current.clone();
        let Some(Step::Backup(order)) = fewer.get_mut(place) else { return };
        if fault >= of(order).len() {
            return;
        }
        of(order).remove(fault);
        match fails(&fewer) {
            Some(end) => *current = fewer[..end].to_vec(),
            None => fault += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::event::{Event, EventKind};

    #[test]
    fn only_what_is_needed_to_fail_stays() {
        let step = |kind| Step::Happen(Event { kind, machine: 0, disk: 0, a: 0, b: 0 });
        let mut steps = vec![step(EventKind::Write); 50];
        steps[7] = step(EventKind::KillQemu);
        steps[31] = step(EventKind::Swap);
        let fails = |steps: &[Step]| {
            let killed = steps.iter().position(|step| *step == self::tests::step(EventKind::KillQemu))?;
            let swapped = steps.iter().position(|step| *step == self::tests::step(EventKind::Swap))?;
            (killed < swapped).then_some(swapped + 1)
        };
        assert_eq!(minimise(&steps, &fails), [step(EventKind::KillQemu), step(EventKind::Swap)]);
    }

    fn step(kind: EventKind) -> Step {
        Step::Happen(Event { kind, machine: 0, disk: 0, a: 0, b: 0 })
    }
}
