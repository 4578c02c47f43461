//! Reads a forge's JSON, keeping only what kennel looks at.
//!
//! A payload may have 25 MB, of which a hundred bytes matter: the rest is checked and dropped as it is read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::payload::PayloadFault;

/// The members of objects that are kept, wherever they stand.
const KEPT: [&str; 24] = [
    "action",
    "after",
    "author",
    "base",
    "deleted",
    "flow",
    "full_name",
    "head",
    "head_commit",
    "id",
    "label",
    "login",
    "message",
    "name",
    "number",
    "pull_request",
    "pusher",
    "ref",
    "ref_type",
    "repo",
    "sha",
    "title",
    "user",
    "username",
];

/// What is kept of a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that is not negative.
    Number(u64),
    /// A string.
    Text(String),
    /// An object's kept members.
    Object(BTreeMap<String, Node>),
    /// An array, or a number of another kind.
    Other,
}

impl Node {
    /// Reads a whole body, which must be an object.
    ///
    /// # Errors
    /// When it is not UTF-8, not JSON, nested deeper than 128 levels, or not an object; naming the field it was in.
    pub(super) fn object(body: &[u8]) -> Result<Self, PayloadFault> {
        let fault = |field: &str, problem: String| PayloadFault { field: field.to_owned(), problem };
        // serde_json does not check the encoding of strings it skips.
        if let Err(err) = str::from_utf8(body) {
            return Err(fault("body", format!("is not valid UTF-8 from byte {} on", err.valid_up_to())));
        }
        let path = RefCell::new(Vec::new());
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = Reader { path: &path, keep: true }.deserialize(&mut json).and_then(|node| json.end().map(|()| node));
        match read {
            Ok(node @ Self::Object(_)) => Ok(node),
            Ok(_) => Err(fault("body", "is not an object".to_owned())),
            Err(err) => {
                let path = path.into_inner().join(".");
                let field = if path.is_empty() { "body" } else { &path };
                let problem = err.to_string();
                if problem.starts_with("recursion limit") {
                    return Err(fault(field, "is nested too deeply".to_owned()));
                }
                Err(fault(field, format!("is not JSON: {problem}")))
            }
        }
    }

    /// What stands at a path of members; `null` counts as nothing.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        let mut node = self;
        for name in path {
            let Self::Object(members) = node else { return None };
            node = members.get(*name)?;
        }
        (*node != Self::Null).then_some(node)
    }

    /// The string at a path, if there is one.
    pub(super) fn text_at(&self, path: &[&str]) -> Option<&str> {
        match self.at(path) {
            Some(Self::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The string at a path, which must be there.
    ///
    /// # Errors
    /// When there is none, naming the path.
    pub(super) fn text(&self, path: &[&str]) -> Result<&str, PayloadFault> {
        let problem = match self.at(path) {
            Some(Self::Text(text)) => return Ok(text),
            Some(_) => "is not a string",
            None => "is missing",
        };
        Err(PayloadFault { field: path.join("."), problem: problem.to_owned() })
    }
}

/// Reads one value: to keep it, or only to see that it is JSON.
#[derive(Clone, Copy)]
struct Reader<'p> {
    /// Where the reader stands, for the sake of faults.
    path: &'p RefCell<Vec<String>>,
    keep: bool,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        // Also what is dropped goes through here rather than `IgnoredAny`, which has no limit to its depth.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(if self.keep { Node::Text(value.to_owned()) } else { Node::Other })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let dropped = Self { keep: false, ..self };
        while seq.next_element_seed(dropped)?.is_some() {}
        Ok(Node::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        if !self.keep {
            while map.next_key::<IgnoredAny>()?.is_some() {
                map.next_value_seed(self)?;
            }
            return Ok(Node::Other);
        }
        let mut members = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            self.path.borrow_mut().push(name.chars().filter(|c| !c.is_control()).take(40).collect());
            let keep = KEPT.contains(&name.as_str());
            let value = map.next_value_seed(Self { keep, ..self })?;
            self.path.borrow_mut().pop();
            if keep {
                members.insert(name, value);
            }
        }
        Ok(Node::Object(members))
    }
}
