//! Who says what powered-off images are: an operator on the command line, or a domain's definition.

use keepmark_model::DiskName;
use keepmark_model::opening::{ImageFormat, Words};

use crate::error::{Error, Result};

/// What is said of a VM's images.
#[derive(Debug, Clone)]
pub enum Said {
    /// By the operator.
    Operator {
        /// Formats, of one disk or of all.
        formats: Vec<(Option<String>, ImageFormat)>,
        /// Whether headers may say what belongs to an image.
        trust_chain: bool,
    },
    /// By a definition, of each image in their order.
    Definition(Vec<Words>),
}

impl Default for Said {
    fn default() -> Self {
        Self::Operator { formats: Vec::new(), trust_chain: false }
    }
}

impl Said {
    /// What is said of one image; of one disk beats of all.
    pub(super) fn of(&self, number: usize, disk: &DiskName) -> Words {
        match self {
            Self::Operator { formats, trust_chain } => {
                let of = |wanted: Option<&str>| formats.iter().find(|(disk, _)| disk.as_deref() == wanted).map(|(_, format)| *format);
                Words::Operator { format: of(Some(disk.as_str())).or_else(|| of(None)), trust_chain: *trust_chain }
            }
            Self::Definition(words) => words.get(number).cloned().unwrap_or_else(Words::none),
        }
    }

    /// Whether all of it is said of a disk that there is.
    pub(super) fn check<'a>(&self, disks: impl Iterator<Item = &'a DiskName>) -> Result<()> {
        let Self::Operator { formats, .. } = self else { return Ok(()) };
        let known: Vec<&str> = disks.map(DiskName::as_str).collect();
        match formats.iter().filter_map(|(disk, _)| disk.as_deref()).find(|disk| !known.contains(disk)) {
            Some(unknown) => Err(Error::UnknownDisk { name: unknown.to_owned(), known: known.join(", ") }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_disk_beats_what_is_said_of_all() {
        let formats = vec![(None, ImageFormat::Raw), (Some("vda".to_owned()), ImageFormat::Qcow2)];
        let said = Said::Operator { formats, trust_chain: false };
        let names = ["vda", "vdb"].map(|name| DiskName::new(name).unwrap());
        let formats = names.each_ref().map(|name| match said.of(0, name) {
            Words::Operator { format, .. } => format,
            Words::Definition { .. } => None,
        });
        assert_eq!(formats, [Some(ImageFormat::Qcow2), Some(ImageFormat::Raw)]);
        assert!(said.check(names.iter()).is_ok());
        assert!(said.check(names[1..].iter()).unwrap_err().to_string().contains("vda"));
    }
}
