//! Making and opening a repository through `rustic_core`: keys and configuration only, nothing on the hot path.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use keepmark_model::ChunkSize;
use rustic_core::repofile::{Chunker, KeyFile, MasterKey};
use rustic_core::{
    BytesList, ConfigOptions, Credentials, ErrorKind, FileType, KeyOptions, OpenStatus, ReadBackend, Repository, RepositoryBackends,
    RepositoryOptions, RusticError, RusticResult, WriteBackend,
};

use crate::error::{Error, Result};
use crate::repository::backend::{Backend, FileKind};
use crate::repository::crypto::Key;
use crate::repository::id::Id;

/// Cost of a new key's scrypt: stock restic's. 32 MiB and about 0.1 s, where rustic takes 128 MiB and 0.4 s.
const KEY_LOG_N: u8 = 15;
/// Largest scrypt of a key file that is tried, bytes of memory.
const KEY_MEMORY_MAX: u64 = 512 << 20;

/// What opening a repository gives.
pub struct Opened {
    /// Its key.
    pub key: Key,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its version of restic's format.
    pub version: u32,
    /// The chunk size that its configuration names, if it does.
    pub chunk_size: Option<ChunkSize>,
}

/// Who makes a key, for people who list keys.
#[derive(Debug, Clone)]
pub struct Maker {
    /// Host name.
    pub hostname: String,
    /// User name.
    pub username: String,
    /// When.
    pub time: Timestamp,
}

/// Makes the key and then the configuration of a new repository: with the latter it exists.
///
/// # Errors
/// When a file cannot be written, or another made a repository there meanwhile.
pub fn init(backend: &Arc<dyn Backend>, password: &str, chunk_size: ChunkSize, maker: &Maker) -> Result<Opened> {
    let master = MasterKey::new();
    let key = write_key(&**backend, &master, password, maker)?;
    let mut options = ConfigOptions::default();
    options.set_chunker = Some(Chunker::FixedSize);
    options.set_chunk_size = chunk_size.bytes().to_string().parse().ok();
    let credentials = Credentials::Masterkey(master);
    let made = connect(backend)
        .and_then(|place| place.init(&credentials, &KeyOptions::default(), &options).map_err(|error| unusable(&**backend, error)));
    // Another's repository may be there now, and a key of ours opens nothing in it.
    let repository = made.inspect_err(|_| drop(backend.remove(FileKind::Key, &key)))?;
    opened(&repository)
}

/// Opens a repository.
///
/// # Errors
/// [`Error::WrongPassword`], or whatever keeps it from being opened.
pub fn open(backend: &Arc<dyn Backend>, password: &str) -> Result<Opened> {
    let credentials = Credentials::Password(password.to_owned());
    match connect(backend)?.open(&credentials) {
        Ok(repository) => opened(&repository),
        Err(error) if error.is_incorrect_password() => Err(no_key_opens(&**backend)?),
        Err(error) => Err(unusable(&**backend, error)),
    }
}

/// A password can be called wrong only if there is a sound key that it does not open.
fn no_key_opens(backend: &dyn Backend) -> Result<Error> {
    let location = backend.location();
    let mut problem = "there is no key file".to_owned();
    for (id, _) in backend.list(FileKind::Key)? {
        match damage_of_key(backend, &id)? {
            None => return Ok(Error::WrongPassword { location }),
            Some(damage) => problem = format!("key {id}: {damage}"),
        }
    }
    Ok(Error::NoKey { location, problem })
}

/// What is wrong with a key file, in words.
pub(crate) fn damage_of_key(backend: &dyn Backend, id: &Id) -> Result<Option<&'static str>> {
    let content = backend.read(FileKind::Key, id)?;
    if Id::of(&content) != *id {
        return Ok(Some("its content does not hash to its name"));
    }
    Ok((!is_usable_key(&content)).then_some("it is none that this program can use"))
}

fn connect(backend: &Arc<dyn Backend>) -> Result<Repository<()>> {
    let mut options = RepositoryOptions::default();
    options.no_cache = true;
    let backends = RepositoryBackends::new(Arc::new(Adapter(Arc::clone(backend))), None);
    Repository::new(&options, &backends).map_err(|error| unusable(&**backend, error))
}

fn unusable(backend: &dyn Backend, error: Box<RusticError>) -> Error {
    Error::unusable(backend, error)
}

fn opened(repository: &Repository<OpenStatus>) -> Result<Opened> {
    let MasterKey { mac, encrypt, .. } = repository.key();
    let config = repository.config();
    let chunk_size = match config.chunker {
        Some(Chunker::FixedSize) => {
            config.chunk_size.and_then(|bytes| u32::try_from(bytes).ok()).and_then(|bytes| ChunkSize::try_from(bytes).ok())
        }
        Some(Chunker::Rabin) | None => None,
    };
    Ok(Opened { key: Key::new(&encrypt, &mac.k, &mac.r)?, id: config.id.to_hex().as_str().to_owned(), version: config.version, chunk_size })
}

fn write_key(backend: &dyn Backend, master: &MasterKey, password: &str, maker: &Maker) -> Result<Id> {
    let failed = |error: &dyn ToString| Error::internal("make a key", error.to_string());
    let mut salt = vec![0; 64];
    aws_lc_rs::rand::fill(&mut salt).map_err(|error| failed(&error))?;
    let params = scrypt::Params::new(KEY_LOG_N, 8, 1).map_err(|error| failed(&error))?;
    let mut derived = [0; 64];
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut derived).map_err(|error| failed(&error))?;
    let (encrypt, mac) = derived.split_at(32);
    let (mac_k, mac_r) = mac.split_at(16);
    let json = serde_json::to_vec(master).map_err(|error| failed(&error))?;
    let file = KeyFile {
        hostname: Some(maker.hostname.clone()),
        username: Some(maker.username.clone()),
        created: Some(maker.time.to_zoned(jiff::tz::TimeZone::UTC)),
        kdf: "scrypt".to_owned(),
        n: 1 << KEY_LOG_N,
        r: 8,
        p: 1,
        data: Key::new(encrypt, mac_k, mac_r)?.seal(&json)?,
        salt,
    };
    let content = serde_json::to_vec(&file).map_err(|error| failed(&error))?;
    let id = Id::of(&content);
    backend.write(FileKind::Key, &id, &content).map(|()| id)
}

/// Whether a key file can be tried: whoever can write into the folder could otherwise make us take any amount of memory.
fn is_usable_key(content: &[u8]) -> bool {
    serde_json::from_slice::<KeyFile>(content).is_ok_and(|key| {
        let memory = 128_u64.saturating_mul(u64::from(key.n)).saturating_mul(u64::from(key.r)).saturating_mul(u64::from(key.p));
        key.kdf == "scrypt" && key.n.is_power_of_two() && key.n > 1 && key.r > 0 && key.p > 0 && memory <= KEY_MEMORY_MAX
    })
}

/// Our backend as `rustic_core` wants it.
#[derive(Clone)]
struct Adapter(Arc<dyn Backend>);

fn kind_of(kind: FileType) -> FileKind {
    match kind {
        FileType::Config => FileKind::Config,
        FileType::Index => FileKind::Index,
        FileType::Key => FileKind::Key,
        FileType::Snapshot => FileKind::Snapshot,
        FileType::Pack => FileKind::Pack,
    }
}

fn id_of(id: &rustic_core::Id) -> RusticResult<Id> {
    Id::parse(id.to_hex().as_str()).ok_or_else(|| RusticError::new(ErrorKind::Backend, "an id is none"))
}

fn failed(error: Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "The repository's files cannot be used.", error)
}

impl ReadBackend for Adapter {
    fn location(&self) -> String {
        self.0.location()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(rustic_core::Id, u32)>> {
        let kind = kind_of(kind);
        if kind == FileKind::Config {
            let size = self.0.size(kind, &Id([0; 32])).map_err(failed)?;
            return Ok(size.map(|size| (rustic_core::Id::default(), u32::try_from(size).unwrap_or(u32::MAX))).into_iter().collect());
        }
        let mut files = self.0.list(kind).map_err(failed)?;
        if kind == FileKind::Key {
            files.retain(|(id, _)| self.0.read(kind, id).is_ok_and(|content| is_usable_key(&content)));
        }
        Ok(files.into_iter().filter_map(|(id, size)| Some((id.hex().parse().ok()?, u32::try_from(size).unwrap_or(u32::MAX)))).collect())
    }

    fn read_full(&self, kind: FileType, id: &rustic_core::Id) -> RusticResult<Bytes> {
        self.0.read(kind_of(kind), &id_of(id)?).map(Bytes::from).map_err(failed)
    }

    fn read_partial(&self, kind: FileType, id: &rustic_core::Id, _cacheable: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let mut buffer = vec![0; length as usize];
        self.0.read_at(kind_of(kind), &id_of(id)?, u64::from(offset), &mut buffer).map_err(failed)?;
        Ok(Bytes::from(buffer))
    }

    fn warmup_path(&self, kind: FileType, id: &rustic_core::Id) -> String {
        Path::new(kind.dirname()).join(id.to_hex().as_str()).display().to_string()
    }
}

impl WriteBackend for Adapter {
    fn write_bytes(&self, kind: FileType, id: &rustic_core::Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        let content: Vec<u8> = content.into_vec().concat();
        self.0.write(kind_of(kind), &id_of(id)?, &content).map_err(failed)
    }

    fn remove(&self, kind: FileType, id: &rustic_core::Id, _cacheable: bool) -> RusticResult<()> {
        self.0.remove(kind_of(kind), &id_of(id)?).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_that_would_take_too_much_are_not_tried() {
        let key = |kdf: &str, n: u64| {
            format!(r#"{{"hostname":"h","username":"u","kdf":"{kdf}","N":{n},"r":8,"p":1,"data":"","salt":""}}"#).into_bytes()
        };
        assert!(is_usable_key(&key("scrypt", 32768)));
        for bad in [key("scrypt", 0), key("scrypt", 3), key("scrypt", 1 << 31), key("argon", 32768), b"{}".to_vec(), vec![]] {
            assert!(!is_usable_key(&bad), "{}", String::from_utf8_lossy(&bad));
        }
    }
}
