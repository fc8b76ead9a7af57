//! A [`Node`] -> a serde type, with places: [`At`] keeps where a value stands, and every error stands where it arose.
//!
//! Unlike reading the type from the text at once, this lets one `kind: List` hold good and broken objects, and lets the
//! targets of a policy be read although its rules cannot be.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::Fault;
use super::tree::{Entry, Node, Position, Value};

/// A value that knows where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place; unknown if it was not read by [`decode`].
    pub at: Position,
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

const AT: &str = "__weft_at";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<At<T>, D::Error> {
                T::deserialize(deserializer).map(|value| At { value, at: Position::default() })
            }

            // What `decode` gives: line and column, then the value.
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<At<T>, A::Error> {
                let (Some(line), Some(column)) = (sequence.next_element()?, sequence.next_element()?) else {
                    return Err(A::Error::custom("a place without a value"));
                };
                let value = sequence.next_element()?.ok_or_else(|| A::Error::custom("a place without a value"))?;
                Ok(At { value, at: Position { line, column } })
            }
        }

        deserializer.deserialize_newtype_struct(AT, AtVisitor(PhantomData))
    }
}

/// A field that the API has and this version of Weft does not: its presence refuses the object, by its name.
#[derive(Clone, Copy, Debug)]
pub enum NotYet {}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(NOT_YET))
    }
}

const NOT_YET: &str = "is known, but not supported by this version of Weft";

/// Reads a type from a node. Null is read as absent.
pub fn decode<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, Fault> {
    T::deserialize(Decoder { node })
}

#[derive(Clone, Copy)]
struct Decoder<'de> {
    node: &'de Node,
}

impl<'de> Decoder<'de> {
    fn unexpected(self, expected: &dyn de::Expected) -> Fault {
        let found = match &self.node.value {
            Value::Null => de::Unexpected::Unit,
            Value::Bool(value) => de::Unexpected::Bool(*value),
            Value::Int(value) => i64::try_from(*value).map_or(de::Unexpected::Other("number"), de::Unexpected::Signed),
            Value::Float(value) => de::Unexpected::Float(*value),
            Value::Text(value) => de::Unexpected::Str(value),
            Value::List(_) => de::Unexpected::Seq,
            Value::Map(_) => de::Unexpected::Map,
        };
        Fault::invalid_type(found, expected).or_at(self.node.at)
    }

    fn placed<T>(self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| fault.or_at(self.node.at))
    }

    fn map<V: Visitor<'de>>(self, entries: &'de [Entry], visitor: V) -> Result<V::Value, Fault> {
        self.placed(visitor.visit_map(MapReader { entries: entries.iter(), current: None }))
    }
}

impl<'de> Deserializer<'de> for Decoder<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.placed(match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(elements) => visitor.visit_seq(ListReader { elements: elements.iter() }),
            Value::Map(entries) => return self.map(entries, visitor),
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => self.placed(visitor.visit_some(self)),
        }
    }

    // A number or boolean where text is due would be refused by Kubernetes too: say what to write.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Int(value) => Err(self.unexpected(&visitor).suggest(format!("\"{value}\""))),
            Value::Bool(value) => Err(self.unexpected(&visitor).suggest(format!("\"{value}\""))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => self.placed(visitor.visit_seq(ListReader { elements: [].iter() })),
            Value::List(_) => self.deserialize_any(visitor),
            _ => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => self.map(&[], visitor),
            Value::Map(entries) => self.map(entries, visitor),
            _ => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => {
                let name: StrDeserializer<'_, Fault> = text.as_str().into_deserializer();
                self.placed(visitor.visit_enum(name))
            }
            _ => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        if name == AT {
            return self.placed(visitor.visit_seq(AtReader { node: self.node, step: 0 }));
        }
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct ListReader<'de> {
    elements: std::slice::Iter<'de, Node>,
}

impl<'de> SeqAccess<'de> for ListReader<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.elements.next().map(|node| seed.deserialize(Decoder { node })).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len())
    }
}

struct MapReader<'de> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for MapReader<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        let key: de::value::BorrowedStrDeserializer<'de, Fault> = de::value::BorrowedStrDeserializer::new(&entry.key);
        seed.deserialize(key).map(Some).map_err(|fault| fault.or_at(entry.at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self.current.ok_or_else(|| Fault::custom("a value without its key"))?;
        seed.deserialize(Decoder { node: &entry.node }).map_err(|mut fault| {
            if fault.message == NOT_YET {
                fault = Fault::new(entry.at, format!("field `{}` {NOT_YET}", entry.key));
            }
            fault
        })
    }
}

struct AtReader<'de> {
    node: &'de Node,
    step: u8,
}

impl<'de> SeqAccess<'de> for AtReader<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.step += 1;
        match self.step {
            1 => seed.deserialize(self.node.at.line.into_deserializer()).map(Some),
            2 => seed.deserialize(self.node.at.column.into_deserializer()).map(Some),
            3 => seed.deserialize(Decoder { node: self.node }).map(Some),
            _ => Ok(None),
        }
    }
}
