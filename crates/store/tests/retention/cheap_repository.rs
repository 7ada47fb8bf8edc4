//! A restic repository of version 1 with nothing but snapshots, whose key costs next to nothing to open: restic is asked hundreds of times.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use aes256ctr_poly1305aes::aead::Aead as _;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Nonce};
use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde_json::{Value, json};

const PASSWORD: &str = "password";

/// The repository.
pub struct CheapRepository {
    folder: tempfile::TempDir,
    master: [u8; 64],
}

impl CheapRepository {
    /// An empty one, in memory.
    pub fn new() -> Self {
        let master = std::array::from_fn(|place| u8::try_from(place).unwrap() + 1);
        let new = Self { folder: tempfile::tempdir_in("/dev/shm").unwrap(), master };
        for name in ["keys", "data", "index", "snapshots", "locks"] {
            std::fs::create_dir(new.path(name)).unwrap();
        }
        let salt = [7; 64];
        let mut derived = [0; 64];
        scrypt::scrypt(PASSWORD.as_bytes(), &salt, &scrypt::Params::new(1, 1, 1).unwrap(), &mut derived).unwrap();
        let secret = json!({"mac": {"k": base64(&master[32..48]), "r": base64(&master[48..])}, "encrypt": base64(&master[..32])});
        let key = json!({"created": "2020-01-01T00:00:00Z", "username": "t", "hostname": "t", "kdf": "scrypt", "N": 2, "r": 1, "p": 1,
            "salt": base64(&salt), "data": base64(&sealed(&derived, secret.to_string().as_bytes()))});
        new.write("keys", key.to_string().as_bytes());
        let config = json!({"version": 1, "id": "ab".repeat(32), "chunker_polynomial": "25b468838dcb75"});
        std::fs::write(new.path("config"), sealed(&master, config.to_string().as_bytes())).unwrap();
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, kind: &str, content: &[u8]) {
        let name = hex::encode(digest(&SHA256, content).as_ref());
        std::fs::write(self.path(kind).join(name), content).unwrap();
    }

    /// From now on it has these snapshots.
    pub fn hold(&self, snapshots: impl Iterator<Item = Value>) {
        std::fs::remove_dir_all(self.path("snapshots")).unwrap();
        std::fs::create_dir(self.path("snapshots")).unwrap();
        snapshots.for_each(|snapshot| self.write("snapshots", &sealed(&self.master, snapshot.to_string().as_bytes())));
    }

    /// What `restic forget` would keep by these options, by host.
    pub fn kept_by_restic(&self, options: &[String]) -> BTreeMap<String, BTreeSet<Timestamp>> {
        let mut restic = Command::new("restic");
        restic.args(["--no-cache", "--no-lock", "forget", "--dry-run", "--json", "--group-by", "host"]).args(options);
        restic.env("RESTIC_REPOSITORY", self.folder.path()).env("RESTIC_PASSWORD", PASSWORD).env("TZ", "UTC");
        let output = restic.output().unwrap();
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        let groups: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let time = |snapshot: &Value| snapshot["time"].as_str().unwrap().parse().unwrap();
        let kept = |group: &Value| group["keep"].as_array().into_iter().flatten().map(time).collect();
        groups.iter().map(|group| (group["host"].as_str().unwrap().to_owned(), kept(group))).collect()
    }
}

/// The installed restic's version, the first two numbers.
pub fn restic_version() -> (u32, u32) {
    let output = Command::new("restic").arg("version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split([' ', '.']).filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// As restic seals: nonce, ciphertext, mac. One nonce is enough where nothing is secret.
fn sealed(key: &[u8; 64], plain: &[u8]) -> Vec<u8> {
    let nonce = [9; 16];
    let mut sealed = nonce.to_vec();
    sealed.extend(Aes256CtrPoly1305Aes::new(key.into()).encrypt(Nonce::from_slice(&nonce), plain).unwrap());
    sealed
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}
