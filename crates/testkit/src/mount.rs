//! File systems of a test: one in a file, which can be cut off, stopped and let go on, and a small one in memory. They need root.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;
use crate::{OrFail, image};

const SIZE: u64 = 512 << 20;

/// `_IOR('X', 125, __u32)` with `EXT4_GOING_FLAGS_NOLOGFLUSH`; there is no tool for it in the packages that we install.
const SHUTDOWN: &str = "import fcntl, os, struct, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// ext4 in a file, mounted on a folder; dropped, it is unmounted.
pub struct Mount {
    image: PathBuf,
    folder: PathBuf,
}

impl Mount {
    /// Makes it. The folder is made too and is empty.
    #[must_use]
    #[track_caller]
    pub fn new(image: PathBuf, folder: PathBuf) -> Self {
        image::sparse(&image, SIZE);
        run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(&image));
        std::fs::create_dir(&folder).or_fail("making a folder to mount on");
        let mount = Self { image, folder };
        mount.mount();
        // The program makes its store's folder itself, but not over lost+found.
        std::fs::remove_dir(mount.folder.join("lost+found")).or_fail("emptying a file system");
        mount
    }

    /// Nothing goes to the disk but by syncs, for longer than a run takes; a rename does not flush what it renames.
    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,commit=300,noauto_da_alloc"]).arg(&self.image).arg(&self.folder));
    }

    /// What is not synced is lost, and nothing can be read or written any more.
    pub fn cut_off(folder: &Path) {
        run(Command::new("python3").args(["-c", SHUTDOWN]).arg(folder));
    }

    /// After it was cut off: what was synced is there.
    pub fn come_back(&self) {
        run(Command::new("umount").arg(&self.folder));
        self.mount();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A test that has failed must not leave a mount that keeps its folder from being removed.
        Command::new("umount").arg("-l").arg(&self.folder).status().ok();
    }
}

/// A file system that does not answer: whoever writes there waits, and cannot even be killed, until this is dropped.
///
/// It has to be dropped before a process that may wait there.
pub struct Stopped(PathBuf);

impl Stopped {
    /// Stops the file system that a folder is on.
    #[must_use]
    #[track_caller]
    pub fn new(folder: &Path) -> Self {
        run(Command::new("/sbin/fsfreeze").arg("--freeze").arg(folder));
        Self(folder.to_owned())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        Command::new("/sbin/fsfreeze").arg("--unfreeze").arg(&self.0).status().ok();
    }
}

/// A small file system in memory; dropped, it is unmounted.
pub struct Small(PathBuf);

impl Small {
    /// With this size in mount's words. The folder is made.
    #[must_use]
    #[track_caller]
    pub fn new(folder: &Path, size: &str) -> Self {
        std::fs::create_dir(folder).or_fail("making a folder to mount on");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder));
        Self(folder.to_owned())
    }

    /// Gives it more space, as the hint asks for: a guest that goes on writing may fill what was small in the next backup, too.
    pub fn make_room(&self) {
        run(Command::new("mount").args(["-o", "remount,size=1g"]).arg(&self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
