//! Documents into the types of the Kubernetes API.
//!
//! Straight from the text, so that an error of type has its line and column. serde-saphyr bounds what anchors
//! may expand to; the bounds on size are ours, for a list of many thousand objects is ordinary here.

use super::split::Chunk;
use super::{Kind, Object};
use crate::directory::yaml::{Place, SyntaxError};
use crate::model::convert;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, Options, UserMessageFormatter};
use std::fmt;
use std::sync::Arc;

/// An object of the API.
#[derive(Debug)]
pub(super) enum Raw {
    Node(Box<core::Node>),
    Namespace(Box<core::Namespace>),
    Pod(Box<core::Pod>),
    Service(Box<core::Service>),
    EndpointSlice(Box<discovery::EndpointSlice>),
    NetworkPolicy(Box<networking::NetworkPolicy>),
}

impl Raw {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
        }
    }

    /// What is left of the text in the typed object: a field that is not here is not of the API.
    pub(super) fn known(&self) -> Result<serde_json::Value, serde_json::Error> {
        match self {
            Self::Node(object) => serde_json::to_value(object),
            Self::Namespace(object) => serde_json::to_value(object),
            Self::Pod(object) => serde_json::to_value(object),
            Self::Service(object) => serde_json::to_value(object),
            Self::EndpointSlice(object) => serde_json::to_value(object),
            Self::NetworkPolicy(object) => serde_json::to_value(object),
        }
    }

    /// A Service that an API server would give an address, and a directory cannot.
    pub(super) fn lacks_address(&self) -> bool {
        let Self::Service(service) = self else { return false };
        let Some(spec) = &service.spec else { return true };
        spec.type_.as_deref() != Some("ExternalName")
            && spec.cluster_ip.as_deref().is_none_or(str::is_empty)
            && spec.cluster_ips.as_deref().is_none_or(<[String]>::is_empty)
    }

    pub(super) fn convert(self) -> Result<Object, convert::Error> {
        Ok(match self {
            Self::Node(object) => Object::Node(Arc::new(convert::node(*object)?)),
            Self::Namespace(object) => Object::Namespace(Arc::new(convert::namespace(*object)?)),
            Self::Pod(object) => {
                let ready = convert::ready_condition(&object);
                Object::Pod(Arc::new(convert::pod(*object)?), ready)
            }
            Self::Service(object) => Object::Service(Arc::new(convert::service(*object)?)),
            Self::EndpointSlice(object) => Object::EndpointSlice(Arc::new(convert::endpoint_slice(*object)?)),
            Self::NetworkPolicy(object) => Object::NetworkPolicy(Arc::new(convert::network_policy(*object)?)),
        })
    }
}

/// Reads a document that is an object.
pub(super) fn object(chunk: &Chunk<'_>, kind: Kind) -> Result<Raw, SyntaxError> {
    serde_saphyr::with_deserializer_from_str_with_options(chunk.text, options(), |deserializer| {
        Typed(kind).deserialize(deserializer)
    })
    .map_err(|error| syntax(&error))
}

/// Reads a document that is a list; items without a kind are passed over.
pub(super) fn list(chunk: &Chunk<'_>, kinds: &[Option<Kind>]) -> Result<Vec<Raw>, SyntaxError> {
    serde_saphyr::with_deserializer_from_str_with_options(chunk.text, options(), |deserializer| {
        deserializer.deserialize_map(List(kinds))
    })
    .map_err(|error| syntax(&error))
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        // As kubectl: `version: 1` is no string.
        no_schema: true,
        // YAML 1.2: a label `country: no` is a string, and only true and false are booleans.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 256 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
    }
}

fn syntax(error: &serde_saphyr::Error) -> SyntaxError {
    let error = error.without_snippet();
    SyntaxError {
        place: error.location().map_or(Place::START, |place| Place::new(place.line(), place.column())),
        message: UserMessageFormatter.format_message(error).into_owned(),
    }
}

/// Reads an object of a kind that is known beforehand.
struct Typed(Kind);

impl<'de> DeserializeSeed<'de> for Typed {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Ok(match self.0 {
            Kind::Node => Raw::Node(Deserialize::deserialize(deserializer)?),
            Kind::Namespace => Raw::Namespace(Deserialize::deserialize(deserializer)?),
            Kind::Pod => Raw::Pod(Deserialize::deserialize(deserializer)?),
            Kind::Service => Raw::Service(Deserialize::deserialize(deserializer)?),
            Kind::EndpointSlice => Raw::EndpointSlice(Deserialize::deserialize(deserializer)?),
            Kind::NetworkPolicy => Raw::NetworkPolicy(Deserialize::deserialize(deserializer)?),
        })
    }
}

struct List<'k>(&'k [Option<Kind>]);

impl<'de> Visitor<'de> for List<'_> {
    type Value = Vec<Raw>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Raw>, A::Error> {
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                items = map.next_value_seed(Items(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(items)
    }
}

struct Items<'k>(&'k [Option<Kind>]);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Raw>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Raw>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Raw>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of Kubernetes objects")
    }

    fn visit_none<E>(self) -> Result<Vec<Raw>, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E>(self) -> Result<Vec<Raw>, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Raw>, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<Raw>, A::Error> {
        let mut raws = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            match kind {
                Some(kind) => raws.extend(sequence.next_element_seed(Typed(*kind))?),
                None => {
                    sequence.next_element::<IgnoredAny>()?;
                }
            }
        }
        Ok(raws)
    }
}
