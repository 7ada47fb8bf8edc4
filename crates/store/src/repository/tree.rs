//! Trees: folders as restic writes them. Times, owner and mode are constants, so that the same content is the same tree.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::repository::id::{ChunkId, Id, TreeId};
use crate::repository::layout::{SEGMENT_CHUNKS, segment_name};

/// Go's bit for a folder in a file mode.
const MODE_DIR: u32 = 1 << 31;

/// An entry of a folder. Other fields than these are not needed to read, and constant when we write.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// File name.
    pub name: String,
    /// `file`, `dir`, or others that we do not write.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes, of a file.
    #[serde(default)]
    pub size: u64,
    /// Pieces in order, of a file.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub content: Vec<ChunkId>,
    /// Content, of a folder.
    #[serde(default)]
    pub subtree: Option<TreeId>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<ChunkId>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct TreeJson {
    #[serde(default)]
    nodes: Option<Vec<Node>>,
}

#[derive(Serialize)]
struct TreeOut<'a> {
    nodes: Vec<NodeOut<'a>>,
}

/// The fields in restic's own order.
#[derive(Serialize)]
struct NodeOut<'a> {
    name: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: &'a str,
    mode: u32,
    mtime: &'static str,
    atime: &'static str,
    ctime: &'static str,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    content: Option<&'a [ChunkId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<TreeId>,
}

impl Node {
    /// A file.
    #[must_use]
    pub fn file(name: impl Into<String>, size: u64, content: Vec<ChunkId>) -> Self {
        Self { name: name.into(), kind: "file".to_owned(), size, content, subtree: None }
    }

    /// A folder.
    #[must_use]
    pub fn dir(name: impl Into<String>, subtree: TreeId) -> Self {
        Self { name: name.into(), kind: "dir".to_owned(), size: 0, content: Vec::new(), subtree: Some(subtree) }
    }

    fn out(&self) -> NodeOut<'_> {
        const EPOCH: &str = "1970-01-01T00:00:00Z";
        let is_dir = self.subtree.is_some();
        NodeOut {
            name: quote(&self.name),
            kind: &self.kind,
            mode: if is_dir { MODE_DIR | 0o700 } else { 0o600 },
            mtime: EPOCH,
            atime: EPOCH,
            ctime: EPOCH,
            uid: 0,
            gid: 0,
            size: (self.size > 0).then_some(self.size),
            content: (!is_dir).then_some(&self.content),
            subtree: self.subtree,
        }
    }
}

/// A tree's bytes and its name. Nodes are put in the order of their names.
///
/// # Errors
/// When two nodes have the same name, or JSON cannot be written.
pub fn encode(nodes: &[Node]) -> Result<(TreeId, Vec<u8>)> {
    let mut nodes: Vec<&Node> = nodes.iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::Refused { problem: format!("a backup cannot have two things called {:?}", pair[0].name) });
    }
    let mut bytes = serde_json::to_vec(&TreeOut { nodes: nodes.into_iter().map(Node::out).collect() })
        .map_err(|error| Error::internal("write JSON", error))?;
    bytes.push(b'\n');
    Ok((Id::of(&bytes), bytes))
}

/// The nodes of a tree.
///
/// # Errors
/// [`Error::Damaged`] when the bytes are no tree.
pub fn decode(id: &TreeId, bytes: &[u8]) -> Result<Vec<Node>> {
    let tree: TreeJson = serde_json::from_slice(bytes).map_err(|error| Error::damaged("tree", id, error))?;
    let mut nodes = tree.nodes.unwrap_or_default();
    nodes.iter_mut().for_each(|node| node.name = unquote(&node.name));
    Ok(nodes)
}

/// restic keeps names as a Go string literal without its quotation marks.
fn quote(name: &str) -> Cow<'_, str> {
    if name.contains(['"', '\\']) { Cow::Owned(name.replace('\\', r"\\").replace('"', r#"\""#)) } else { Cow::Borrowed(name) }
}

/// The inverse of [`quote`]; escapes of other characters, which we never write, stay as they are.
fn unquote(name: &str) -> String {
    let (mut plain, mut rest) = (String::with_capacity(name.len()), name);
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let escaped = after.chars().next().filter(|c| matches!(c, '"' | '\\'));
        plain.push(escaped.unwrap_or('\\'));
        rest = after.get(usize::from(escaped.is_some())..).unwrap_or_default();
    }
    plain.push_str(rest);
    plain
}

/// The nodes of a disk's folder that has these chunks, `bytes` long together.
#[must_use]
pub fn segments(chunks: &[ChunkId], chunk_size: u64, bytes: u64) -> Vec<Node> {
    let segment_size = SEGMENT_CHUNKS * chunk_size;
    let pieces = chunks.chunks(usize::try_from(SEGMENT_CHUNKS).unwrap_or(usize::MAX));
    let numbered = (0_u64..).zip(pieces);
    numbered
        .map(|(number, ids)| Node::file(segment_name(number), bytes.saturating_sub(number * segment_size).min(segment_size), ids.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_restics_form_and_reads_back() {
        let nodes = vec![Node::dir("b", Id([2; 32])), Node::file("a", 5, vec![Id([1; 32])]), Node::file("empty", 0, vec![])];
        let (id, bytes) = encode(&nodes).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        insta::assert_snapshot!(text.trim_end(), @r#"{"nodes":[{"name":"a","type":"file","mode":384,"mtime":"1970-01-01T00:00:00Z","atime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z","uid":0,"gid":0,"size":5,"content":["0101010101010101010101010101010101010101010101010101010101010101"]},{"name":"b","type":"dir","mode":2147484096,"mtime":"1970-01-01T00:00:00Z","atime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z","uid":0,"gid":0,"content":null,"subtree":"0202020202020202020202020202020202020202020202020202020202020202"},{"name":"empty","type":"file","mode":384,"mtime":"1970-01-01T00:00:00Z","atime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z","uid":0,"gid":0,"content":[]}]}"#);
        assert!(text.ends_with("}\n"));
        let mut sorted = nodes;
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(decode(&id, &bytes).unwrap(), sorted);
    }

    #[test]
    fn names_are_quoted_as_go_does_it() {
        for (name, quoted) in [("a", "a"), ("ü", "ü"), (r#"a"b\c"#, r#"a\"b\\c"#), (r"\\", r"\\\\"), (r"\", r"\\"), ("", "")] {
            assert_eq!(quote(name), quoted);
            assert_eq!(unquote(quoted), name);
        }
        assert_eq!(unquote(r"a\tb"), r"a\tb");
    }

    #[test]
    fn two_of_a_name_are_refused() {
        assert!(encode(&[Node::file("a", 0, vec![]), Node::file("a", 0, vec![])]).is_err());
    }

    #[test]
    fn segments_cut_the_last_one_short() {
        let nodes = segments(&[Id([1; 32]); 20], 10, 195);
        let shapes: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.size, node.content.len())).collect();
        assert_eq!(shapes, [("0", 160, 16), ("1", 35, 4)]);
    }
}
