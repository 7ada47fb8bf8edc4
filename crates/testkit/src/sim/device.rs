//! What is between a simulated device and its images: keepmark's filter, a mirror of somebody else's.

use super::image::{Format, SimDisk};

/// What a device's writes pass before they reach its images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Whether keepmark's filter is there.
    pub filter: bool,
    /// A mirror of somebody else's.
    pub mirror: Option<Mirror>,
}

/// A mirror that has copied everything, and gets what is written since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The file to which it copies.
    pub path: u32,
    /// What it has, if something was put between it and the device: writes pass it by since.
    pub stale: Option<Vec<u32>>,
}

impl SimDisk {
    fn values(&self) -> Vec<u32> {
        self.content().iter().map(|(value, _)| *value).collect()
    }

    /// keepmark's filter is put between the device and the active image's own node: above whatever uses that node by itself.
    pub fn filter(&mut self) {
        let values = self.values();
        self.device.filter = true;
        self.device.mirror.iter_mut().filter(|mirror| mirror.stale.is_none()).for_each(|mirror| mirror.stale = Some(values.clone()));
    }

    /// Somebody begins a mirror. QEMU mirrors only what nothing is above.
    pub fn begin_mirror(&mut self, path: u32) -> bool {
        let is_possible = self.device == Device::default();
        if is_possible {
            self.device.mirror = Some(Mirror { path, stale: None });
        }
        is_possible
    }

    /// The mirror ends, and the device uses its file from now on. Says what is wrong with what the guest reads there.
    pub fn pivot(&mut self) -> Option<String> {
        let mirror = self.device.mirror.take()?;
        let cluster = self.layers.first().map_or(1, |active| active.cluster);
        let is_stale = mirror.stale.is_some_and(|stale| stale != self.values());
        self.rewrite(mirror.path, Format::Qcow2, cluster, false);
        is_stale.then(|| format!("the guest reads old data on disk {}: its writes did not reach the mirror", self.name))
    }
}
