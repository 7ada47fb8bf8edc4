//! Where a libvirt keeps what no call of it tells: the state of TPMs, and images by default.

use std::path::PathBuf;

const SYSTEM: &str = "/var/lib/libvirt";

/// Folders of the user that runs the program, for `qemu:///session`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserFolders {
    /// `$XDG_CONFIG_HOME` or `~/.config`.
    pub config: PathBuf,
    /// `$XDG_DATA_HOME` or `~/.local/share`.
    pub data: PathBuf,
}

/// Folders of one libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folders {
    /// State of emulated TPMs, a folder for each domain's UUID.
    pub(crate) swtpm: PathBuf,
    /// Images.
    pub(crate) images: PathBuf,
}

impl Folders {
    /// Those of the libvirt at a URI.
    pub(crate) fn of(uri: &str, user: &UserFolders) -> Self {
        let path = uri.split(['?', '#']).next().unwrap_or_default();
        if path.ends_with("/session") {
            Self { swtpm: user.config.join("libvirt/qemu/swtpm"), images: user.data.join("libvirt/images") }
        } else {
            let system = PathBuf::from(SYSTEM);
            Self { swtpm: system.join("swtpm"), images: system.join("images") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_its_users_folders() {
        let user = UserFolders { config: "/h/.config".into(), data: "/h/.local/share".into() };
        let images = |uri: &str| Folders::of(uri, &user).images;
        assert_eq!(images("qemu:///system"), PathBuf::from("/var/lib/libvirt/images"));
        assert_eq!(images("qemu+unix:///system?socket=/session"), PathBuf::from("/var/lib/libvirt/images"));
        assert_eq!(images("qemu+unix:///session?socket=/a"), PathBuf::from("/h/.local/share/libvirt/images"));
        assert_eq!(Folders::of("qemu:///session", &user).swtpm, PathBuf::from("/h/.config/libvirt/qemu/swtpm"));
    }
}
