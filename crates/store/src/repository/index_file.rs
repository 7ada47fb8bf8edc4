//! Index files: which pack has which blobs. Written small and often, read as a stream because others write large ones.

use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::repository::blob::BlobEntry;
use crate::repository::id::{BlobKind, Id, PackId};
use crate::repository::pack::PublishedPack;

/// An index file as JSON has it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct IndexFile {
    #[serde(default, deserialize_with = "null_is_empty")]
    packs: Vec<IndexPack>,
    /// Packs that rustic is about to remove, as it wrote them.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    packs_to_delete: Vec<serde_json::Value>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Serialize, Deserialize)]
struct IndexPack {
    id: PackId,
    blobs: Vec<IndexBlob>,
}

#[derive(Debug, Serialize, Deserialize)]
struct IndexBlob {
    id: Id,
    #[serde(rename = "type")]
    kind: BlobKind,
    offset: u32,
    length: u32,
    /// Absent or 0 where the blob is not compressed.
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl IndexFile {
    /// The index of these packs.
    #[must_use]
    pub fn of(packs: &[PublishedPack]) -> Self {
        let to_json = |pack: &PublishedPack| IndexPack { id: pack.id, blobs: pack.blobs.iter().map(to_json).collect() };
        Self { packs: packs.iter().map(to_json).collect(), packs_to_delete: Vec::new() }
    }

    /// Reads one as a whole.
    ///
    /// # Errors
    /// When it is no index.
    pub fn read(content: impl Read) -> Result<Self, serde_json::Error> {
        serde_json::from_reader(BufReader::with_capacity(1 << 16, content))
    }

    /// Takes in what another says, except of some packs.
    pub fn extend(&mut self, other: Self, mut without: impl FnMut(&PackId) -> bool) {
        self.packs.extend(other.packs.into_iter().filter(|pack| !without(&pack.id)));
        self.packs_to_delete.extend(other.packs_to_delete);
    }

    /// Its packs.
    pub fn packs(&self) -> impl Iterator<Item = PublishedPack> {
        self.packs.iter().map(|pack| PublishedPack { id: pack.id, blobs: pack.blobs.iter().map(from_json).collect() })
    }

    /// The packs that rustic is about to remove.
    pub fn packs_to_delete(&self) -> impl Iterator<Item = PackId> {
        self.packs_to_delete.iter().filter_map(|pack| Id::parse(pack.get("id")?.as_str()?))
    }

    /// Number of blobs.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.packs.iter().map(|pack| pack.blobs.len()).sum()
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.packs_to_delete.is_empty()
    }
}

fn to_json(blob: &BlobEntry) -> IndexBlob {
    let BlobEntry { id, kind, offset, length, plain_length } = *blob;
    IndexBlob { id, kind, offset, length, uncompressed_length: plain_length.unwrap_or(0) }
}

fn from_json(blob: &IndexBlob) -> BlobEntry {
    let IndexBlob { id, kind, offset, length, uncompressed_length } = *blob;
    BlobEntry { id, kind, offset, length, plain_length: (uncompressed_length != 0).then_some(uncompressed_length) }
}

/// Reads an index file and hands each blob to `sink`, pack by pack.
///
/// # Errors
/// When it is no index.
pub fn decode(content: impl Read, sink: &mut dyn FnMut(PackId, BlobEntry)) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, content));
    FileSeed(sink).deserialize(&mut json)?;
    json.end()
}

struct FileSeed<'a>(&'a mut dyn FnMut(PackId, BlobEntry));

impl<'de> DeserializeSeed<'de> for FileSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FileSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key::<String>()? {
            // Packs that are marked for deletion ("packs_to_delete") are as good as gone.
            if field == "packs" {
                map.next_value_seed(PacksSeed(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct PacksSeed<'a>(&'a mut dyn FnMut(PackId, BlobEntry));

impl<'de> DeserializeSeed<'de> for PacksSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PacksSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of packs")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut packs: A) -> Result<(), A::Error> {
        while let Some(pack) = packs.next_element::<IndexPack>()? {
            for blob in &pack.blobs {
                (self.0)(pack.id, from_json(blob));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_reads_back_and_has_the_documented_form() {
        let blobs = vec![
            BlobEntry { id: Id([1; 32]), kind: BlobKind::Data, offset: 0, length: 100, plain_length: None },
            BlobEntry { id: Id([2; 32]), kind: BlobKind::Tree, offset: 100, length: 50, plain_length: Some(400) },
        ];
        let pack = PublishedPack { id: Id([9; 32]), blobs };
        let json = serde_json::to_string(&IndexFile::of(std::slice::from_ref(&pack))).unwrap();
        let (one, two, nine) = ("01".repeat(32), "02".repeat(32), "09".repeat(32));
        assert_eq!(
            json,
            format!(
                r#"{{"packs":[{{"id":"{nine}","blobs":[{{"id":"{one}","type":"data","offset":0,"length":100}},{{"id":"{two}","type":"tree","offset":100,"length":50,"uncompressed_length":400}}]}}]}}"#
            )
        );
        let mut seen = Vec::new();
        decode(json.as_bytes(), &mut |id, blob| seen.push((id, blob))).unwrap();
        assert_eq!(seen, pack.blobs.iter().map(|blob| (pack.id, *blob)).collect::<Vec<_>>());
    }

    #[test]
    fn fields_of_others_are_fine_and_rubbish_is_not() {
        decode(&br#"{"supersedes":["x"],"packs":null,"packs_to_delete":[1]}"#[..], &mut |_, _| panic!("nothing is there")).unwrap();
        for rubbish in ["", "[]", r#"{"packs":[{"id":"xx","blobs":[]}]}"#, r#"{"packs":[]} x"#] {
            assert!(decode(rubbish.as_bytes(), &mut |_, _| {}).is_err(), "{rubbish}");
        }
    }
}
