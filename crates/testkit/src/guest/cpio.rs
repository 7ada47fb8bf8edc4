//! The archive format of an initramfs ("newc" cpio), written without needing root for the console's device node.

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; its parent must have been added before.
    pub fn folder(&mut self, name: &str) {
        self.add(&Entry { name, mode: 0o040_755, device: (0, 0), content: &[] });
    }

    /// Adds an executable file.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.add(&Entry { name, mode: 0o100_755, device: (0, 0), content });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.add(&Entry { name, mode: 0o120_777, device: (0, 0), content: target.as_bytes() });
    }

    /// Adds the console's device node, from which `/init` gets its standard streams.
    pub fn console(&mut self, name: &str) {
        self.add(&Entry { name, mode: 0o020_600, device: (5, 1), content: &[] });
    }

    /// Ends the archive and gives its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.add(&Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), content: &[] });
        self.bytes
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let links = 1;
        let fields = [
            self.entries as usize,
            entry.mode as usize,
            0,
            0,
            links,
            0,
            entry.content.len(),
            0,
            0,
            entry.device.0 as usize,
            entry.device.1 as usize,
            entry.name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(entry.content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
