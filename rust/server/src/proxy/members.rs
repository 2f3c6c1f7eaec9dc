//! A JSON object whose members keep their bytes and order: what is not changed is passed on as it came.

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

/// The members of an object. No name is there twice: readers differ on which of the two counts.
#[derive(Debug, Default)]
pub(crate) struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    pub(crate) fn parse(json: &[u8]) -> Result<Members, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The member as a type; `None` when it is absent or null.
    pub(crate) fn read<'a, T: de::Deserialize<'a>>(
        &'a self,
        name: &str,
    ) -> Result<Option<T>, serde_json::Error> {
        self.get(name).map_or(Ok(None), |value| serde_json::from_str(value.get()))
    }

    /// Sets a member in its place, or at the end.
    pub(crate) fn set(&mut self, name: &str, value: &impl Serialize) {
        let raw = serde_json::value::to_raw_value(value).expect("numbers, texts and trees of them");
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }

    /// Removes a member; returns whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| known != name);
        self.0.len() < before
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("members are valid JSON")
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                const MOST: usize = 256;
                let mut members = Members::default();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.get(&name).is_some() {
                        return Err(de::Error::custom(format!("{name:?} is there twice")));
                    }
                    if members.0.len() == MOST {
                        return Err(de::Error::custom(format!("more than {MOST} members")));
                    }
                    members.0.push((name, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_keeps_its_bytes_and_its_place() {
        let json = br#"{"b":1.0e2,"x":{"z": 1,"a":12345678901234567890123},"max_tokens":7}"#;
        let mut members = Members::parse(json).unwrap();
        members.set("max_tokens", &3);
        members.set("new", &true);
        let expected =
            r#"{"b":1.0e2,"x":{"z": 1,"a":12345678901234567890123},"max_tokens":3,"new":true}"#;
        assert_eq!(String::from_utf8(members.to_json()).unwrap(), expected);
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_however_it_is_written() {
        let twice = br#"{"model":"a","mod\u0065l":"b"}"#;
        assert!(
            Members::parse(twice).unwrap_err().to_string().contains("\"model\" is there twice")
        );
        assert!(Members::parse(b"[1]").is_err());
    }
}
