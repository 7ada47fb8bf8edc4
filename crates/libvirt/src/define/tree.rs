//! XML as a tree that can be changed and written again. Pure.

use roxmltree::{Document, Node};

use crate::error::{Error, Result};
use crate::xml::write;

// libvirt's own documents are a dozen deep; what is deeper is no definition.
const DEPTH_MAX: usize = 64;
const INDENT: &str = "  ";

/// An element with all that is in it. Comments are not kept, nor is white space between elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Child>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Child {
    Element(Element),
    Text(String),
}

impl Element {
    /// An empty element.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), attributes: Vec::new(), children: Vec::new() }
    }

    /// Reads a document's root.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let document = Document::parse(text).map_err(|source| unreadable(source.into()))?;
        Self::read(document.root_element(), 0)
    }

    fn read(node: Node<'_, '_>, depth: usize) -> Result<Self> {
        if depth > DEPTH_MAX {
            return Err(unreadable("its elements are too deep".into()));
        }
        let attributes = node.attributes().map(|one| (prefixed(node, one.namespace(), one.name()), one.value().to_owned()));
        let mut element = Self {
            name: prefixed(node, node.tag_name().namespace(), node.tag_name().name()),
            attributes: declarations(node).into_iter().chain(attributes).collect(),
            children: Vec::new(),
        };
        let has_elements = node.children().any(|child| child.is_element());
        for child in node.children() {
            if child.is_element() {
                element.children.push(Child::Element(Self::read(child, depth + 1)?));
            } else if let Some(text) = child.text().filter(|text| child.is_text() && !(has_elements && text.trim().is_empty())) {
                element.add_text(text);
            }
        }
        Ok(element)
    }

    // Texts with nothing but a comment between them are one: what is looked at is what is written again.
    fn add_text(&mut self, text: &str) {
        match self.children.last_mut() {
            Some(Child::Text(before)) => before.push_str(text),
            Some(Child::Element(_)) | None => self.children.push(Child::Text(text.to_owned())),
        }
    }

    /// The document, indented.
    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        self.write_into(&mut text, Some(0));
        text
    }

    // Without a depth it stands inside of a text, where white space counts.
    fn write_into(&self, text: &mut String, depth: Option<usize>) {
        let indent = depth.map(|depth| INDENT.repeat(depth)).unwrap_or_default();
        let end = if depth.is_some() { "\n" } else { "" };
        text.push_str(&format!("{indent}<{}", self.name));
        self.attributes.iter().for_each(|(name, value)| text.push_str(&write::attribute(name, value)));
        if self.children.is_empty() {
            text.push_str(&format!("/>{end}"));
            return;
        }
        text.push('>');
        let inner = depth.filter(|_| self.children.iter().all(|child| matches!(child, Child::Element(_)))).map(|depth| depth + 1);
        text.push_str(if inner.is_some() { "\n" } else { "" });
        for child in &self.children {
            match child {
                Child::Text(value) => text.push_str(&write::text(value)),
                Child::Element(element) => element.write_into(text, inner),
            }
        }
        text.push_str(&format!("{}</{}>{end}", if inner.is_some() { indent.as_str() } else { "" }, self.name));
    }

    // ---- looking --------------------------------------------------------------------------------------------------------

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn get(&self, attribute: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| name == attribute).map(|(_, value)| value.as_str())
    }

    /// Its own text, trimmed; none if that is empty.
    pub(crate) fn text(&self) -> Option<&str> {
        self.children.iter().find_map(|child| match child {
            Child::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            Child::Element(_) => None,
        })
    }

    pub(crate) fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|child| match child {
            Child::Element(element) => Some(element),
            Child::Text(_) => None,
        })
    }

    pub(crate) fn elements_mut(&mut self) -> impl Iterator<Item = &mut Self> {
        self.children.iter_mut().filter_map(|child| match child {
            Child::Element(element) => Some(element),
            Child::Text(_) => None,
        })
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.elements().find(|element| element.name == name)
    }

    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.elements_mut().find(|element| element.name == name)
    }

    /// The text of a child.
    pub(crate) fn text_of(&self, child: &str) -> Option<&str> {
        self.child(child)?.text()
    }

    /// The attribute of a child.
    pub(crate) fn get_of(&self, child: &str, attribute: &str) -> Option<&str> {
        self.child(child)?.get(attribute)
    }

    /// Itself and everything below it.
    pub(crate) fn visit<'a>(&'a self, look: &mut dyn FnMut(&'a Self)) {
        look(self);
        self.elements().for_each(|element| element.visit(look));
    }

    /// Its attributes: name and value.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All values of its attributes and its own text.
    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.attributes.iter().map(|(_, value)| value.as_str()).chain(self.text())
    }

    // ---- changing -------------------------------------------------------------------------------------------------------

    pub(crate) fn set(&mut self, attribute: &str, value: &str) {
        match self.attributes.iter_mut().find(|(name, _)| name == attribute) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((attribute.to_owned(), value.to_owned())),
        }
    }

    pub(crate) fn unset(&mut self, attribute: &str) {
        self.attributes.retain(|(name, _)| name != attribute);
    }

    /// With an attribute.
    pub(crate) fn with(mut self, attribute: &str, value: &str) -> Self {
        self.set(attribute, value);
        self
    }

    /// Makes a text all that is in it.
    pub(crate) fn set_text(&mut self, text: &str) {
        self.children = vec![Child::Text(text.to_owned())];
    }

    /// Removes all that is in it.
    pub(crate) fn clear(&mut self) {
        self.children.clear();
    }

    /// Changes the first child of a name, which is made where there is none.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Self)) {
        match self.child_mut(name) {
            Some(element) => change(element),
            None => {
                let mut element = Self::new(name);
                change(&mut element);
                self.children.push(Child::Element(element));
            }
        }
    }

    /// Puts an element in the place of all others of its name, or at the end.
    pub(crate) fn replace(&mut self, element: Self) {
        let name = element.name.clone();
        let mut is_first = true;
        self.retain(|old| old.name != name || std::mem::take(&mut is_first));
        self.edit(&name, |old| *old = element);
    }

    /// Removes all children of a name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.retain(|element| element.name != name);
    }

    /// Removes the children that are not to be kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut Self) -> bool) {
        self.children.retain_mut(|child| match child {
            Child::Element(element) => keep(element),
            Child::Text(_) => true,
        });
    }

    /// Changes everything below it.
    pub(crate) fn each(&mut self, change: &mut dyn FnMut(&mut Self)) {
        for element in self.elements_mut() {
            change(element);
            element.each(change);
        }
    }
}

fn unreadable(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Xml { subject: "the domain in the backup".into(), source }
}

// A name as the document writes it: with the prefix of its namespace.
fn prefixed(node: Node<'_, '_>, namespace: Option<&str>, name: &str) -> String {
    let prefix = namespace.and_then(|uri| node.lookup_prefix(uri)).filter(|prefix| !prefix.is_empty());
    prefix.map_or_else(|| name.to_owned(), |prefix| format!("{prefix}:{name}"))
}

// The namespaces that are declared here and not above.
fn declarations(node: Node<'_, '_>) -> Vec<(String, String)> {
    let above = |prefix: Option<&str>| node.parent_element().and_then(|parent| parent.lookup_namespace_uri(prefix));
    let new = node.namespaces().filter(|one| one.name() != Some("xml") && above(one.name()) != Some(one.uri()));
    let name = |prefix: Option<&str>| prefix.map_or_else(|| "xmlns".to_owned(), |prefix| format!("xmlns:{prefix}"));
    new.map(|one| (name(one.name()), one.uri().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "<a/>",
            "<a b='1 &amp; &apos;2&apos;'><c>x &lt; y</c><d/>\n  <e f='&#10;'/></a>",
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline><qemu:arg value='-s'/></qemu:commandline></domain>",
            "<m><o:os xmlns:o='urn:o' o:id='1'><o:x/></o:os><p xmlns='urn:p'><q/></p></m>",
            "<t>one <b>two</b> three</t>",
        ] {
            let read = Element::parse(text).unwrap();
            assert_eq!(Element::parse(&read.write()).unwrap(), read, "{}", read.write());
        }
    }

    #[test]
    fn namespaces_stay_where_they_were_declared() {
        let text = "<d xmlns:q='urn:q'>\n  <q:a q:b='1'/>\n  <m xmlns='urn:m'>\n    <n/>\n  </m>\n</d>\n";
        assert_eq!(Element::parse(text).unwrap().write(), text);
    }

    #[test]
    fn a_tree_is_changed_in_place() {
        let mut tree = Element::parse("<a x='1'><b/><c>old</c><b/></a>").unwrap();
        tree.set("x", "2");
        tree.set("y", "<");
        tree.edit("c", |c| c.set_text("new & old"));
        tree.replace(Element::new("b").with("z", "3"));
        tree.edit("d", |_| ());
        assert_eq!(tree.write(), "<a x='2' y='&lt;'>\n  <b z='3'/>\n  <c>new &amp; old</c>\n  <d/>\n</a>\n");
        tree.remove("b");
        tree.unset("x");
        assert_eq!(tree.write(), "<a y='&lt;'>\n  <c>new &amp; old</c>\n  <d/>\n</a>\n");
    }

    #[test]
    fn a_comment_hides_nothing() {
        let tree = Element::parse("<a>/usr/share/x<!-- -->/../../etc<![CDATA[/shadow]]></a>").unwrap();
        assert_eq!(tree.text(), Some("/usr/share/x/../../etc/shadow"));
    }

    #[test]
    fn rubbish_and_bottomless_depth_are_errors() {
        assert!(Element::parse("<a><b></a>").is_err());
        assert!(Element::parse(&format!("{}{}", "<a>".repeat(200), "</a>".repeat(200))).is_err());
    }
}
