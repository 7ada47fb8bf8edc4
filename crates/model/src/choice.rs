//! Which of a VM's disks a backup is about.

use crate::facts::{DiskFacts, VmFacts};
use crate::failure::{Failure, FailureClass};
use crate::names::DiskName;

/// The disks that the user means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DiskChoice {
    /// All that can be backed up.
    #[default]
    All,
    /// These.
    Only(Vec<DiskName>),
    /// All but these; one that the VM has not is no mistake, since several VMs may be meant.
    Except(Vec<DiskName>),
}

/// A choice that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// A disk was named that the VM has not.
    #[error("the VM has no disk {name} (it has: {known})")]
    UnknownDisk {
        /// The name as asked for.
        name: DiskName,
        /// The disks that there are.
        known: String,
    },
    /// Nothing can be backed up.
    #[error("the VM has no disk that can be backed up ({why})")]
    NoDisks {
        /// What was left out, and why.
        why: String,
    },
}

impl From<ChoiceError> for Failure {
    fn from(error: ChoiceError) -> Self {
        Self::new(FailureClass::Usage, error)
    }
}

impl DiskChoice {
    /// The disks of a VM that are meant, in the VM's order; never none.
    ///
    /// # Errors
    /// When one that was named is not there, or nothing is left.
    pub fn of<'a>(&self, facts: &'a VmFacts) -> Result<Vec<&'a DiskFacts>, ChoiceError> {
        let chosen: Vec<&DiskFacts> = facts.disks.iter().filter(|disk| self.means(&disk.name)).collect();
        match self.unknown(facts) {
            Some(name) => Err(ChoiceError::UnknownDisk { name: name.clone(), known: names(facts).join(", ") }),
            None if chosen.is_empty() => Err(ChoiceError::NoDisks { why: why_none(facts) }),
            None => Ok(chosen),
        }
    }

    fn means(&self, name: &DiskName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
            Self::Except(names) => !names.contains(name),
        }
    }

    fn unknown(&self, facts: &VmFacts) -> Option<&DiskName> {
        let Self::Only(wanted) = self else { return None };
        wanted.iter().find(|name| !facts.disks.iter().any(|disk| disk.name == **name))
    }
}

fn names(facts: &VmFacts) -> Vec<&str> {
    facts.disks.iter().map(|disk| disk.name.as_str()).collect()
}

fn why_none(facts: &VmFacts) -> String {
    let skipped = facts.skipped.iter().map(|skipped| format!("{}: {}", skipped.name, skipped.why));
    let excluded = names(facts).into_iter().map(|name| format!("{name}: it is excluded"));
    let why: Vec<String> = skipped.chain(excluded).collect();
    if why.is_empty() { "it has none".into() } else { why.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Persistence, Power, SkippedDisk};
    use crate::{Size, VmIdentity};

    fn vm(disks: &[&str], skipped: &[&str]) -> VmFacts {
        let disk = |name: &&str| DiskFacts {
            name: DiskName::new(name).unwrap(),
            size: Size(1 << 20),
            format: "qcow2".into(),
            cluster_size: None,
            image: format!("/{name}"),
            persistence: Persistence::Stored,
            layers: vec![],
        };
        VmFacts {
            identity: VmIdentity::new("vm", None).unwrap(),
            power: Power::Running,
            hypervisor: "h".into(),
            disks: disks.iter().map(disk).collect(),
            skipped: skipped.iter().map(|name| SkippedDisk { name: (*name).into(), why: "it is empty".into() }).collect(),
            agent: false,
        }
    }

    fn choice(kind: fn(Vec<DiskName>) -> DiskChoice, names: &[&str]) -> DiskChoice {
        kind(names.iter().map(|name| DiskName::new(name).unwrap()).collect())
    }

    #[test]
    fn the_disks_that_are_meant_come_in_the_vms_order() {
        let facts = vm(&["vda", "vdb", "vdc"], &["sda"]);
        for (choice, expected) in [
            (DiskChoice::All, vec!["vda", "vdb", "vdc"]),
            (choice(DiskChoice::Only, &["vdc", "vda"]), vec!["vda", "vdc"]),
            (choice(DiskChoice::Except, &["vdb"]), vec!["vda", "vdc"]),
            (choice(DiskChoice::Except, &["sdz"]), vec!["vda", "vdb", "vdc"]),
        ] {
            let names: Vec<&str> = choice.of(&facts).unwrap().iter().map(|disk| disk.name.as_str()).collect();
            assert_eq!(names, expected, "{choice:?}");
        }
    }

    #[test]
    fn what_cannot_be_met_is_said_in_words() {
        for (facts, choice, expected) in [
            (vm(&["vda"], &[]), choice(DiskChoice::Only, &["sdz"]), "the VM has no disk sdz (it has: vda)"),
            (vm(&[], &["sda"]), choice(DiskChoice::Only, &["sda"]), "the VM has no disk sda (it has: )"),
            (vm(&[], &[]), DiskChoice::All, "the VM has no disk that can be backed up (it has none)"),
            (vm(&[], &["sda"]), DiskChoice::All, "the VM has no disk that can be backed up (sda: it is empty)"),
            (
                vm(&["vda"], &["sda"]),
                choice(DiskChoice::Except, &["vda"]),
                "the VM has no disk that can be backed up (sda: it is empty; vda: it is excluded)",
            ),
        ] {
            assert_eq!(choice.of(&facts).unwrap_err().to_string(), expected);
        }
    }
}
