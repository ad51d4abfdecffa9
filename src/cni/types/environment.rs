//! The `CNI_…` variables (SPEC.md, section 2, "Parameters").

use super::{Code, Error};
use crate::cni::types::Attachment;
use crate::model::ObjectName;
use std::ffi::OsString;
use std::path::PathBuf;

/// Longest container id: with the name of the interface it must fit the alias of a link (255 bytes).
const MAX_CONTAINER_ID: usize = 200;

/// `IFNAMSIZ` less the final zero.
const MAX_IFNAME: usize = 15;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare.
    Check,
    /// Detach all but those listed.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions?
    Version,
}

impl Verb {
    /// Last part of the path of the agent's API; none for VERSION, which the agent is not asked.
    #[must_use]
    pub const fn path(self) -> Option<&'static str> {
        match self {
            Self::Add => Some("add"),
            Self::Del => Some("del"),
            Self::Check => Some("check"),
            Self::Gc => Some("gc"),
            Self::Status => Some("status"),
            Self::Version => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }
}

/// The pod, as `CNI_ARGS` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodArgs {
    pub(super) pod: Option<ObjectName>,
    pub(super) uid: Option<String>,
}

/// What the verbs need of the environment. `attachment` and `netns` are there where the verb requires them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) verb: Verb,
    pub(super) attachment: Option<Attachment>,
    pub(super) netns: Option<PathBuf>,
    pub(super) args: PodArgs,
}

impl Environment {
    pub(super) fn parse(get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let get = |name: &'static str| -> Result<Option<String>, Error> {
            match get(name).map(OsString::into_string) {
                None => Ok(None),
                Some(Ok(text)) => Ok((!text.is_empty()).then_some(text)),
                Some(Err(bytes)) => Err(invalid(name, &bytes.to_string_lossy(), "is not UTF-8")),
            }
        };
        let Some(command) = get("CNI_COMMAND")? else { return Err(missing(&["CNI_COMMAND"])) };
        let Some(verb) = Verb::parse(&command) else {
            let why = "is not one of ADD, DEL, CHECK, GC, STATUS, VERSION";
            return Err(invalid("CNI_COMMAND", &command, why));
        };
        let (attached, with_netns) = match verb {
            Verb::Add | Verb::Check => (true, true),
            Verb::Del => (true, false),
            Verb::Gc | Verb::Status | Verb::Version => (false, false),
        };
        if !attached {
            return Ok(Self { verb, attachment: None, netns: None, args: PodArgs::default() });
        }
        let (id, ifname, netns) = (get("CNI_CONTAINERID")?, get("CNI_IFNAME")?, get("CNI_NETNS")?);
        let absent: Vec<&str> = [
            ("CNI_CONTAINERID", id.is_none()),
            ("CNI_NETNS", with_netns && netns.is_none()),
            ("CNI_IFNAME", ifname.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, absent)| absent.then_some(name))
        .collect();
        let (Some(container_id), Some(ifname), true) = (id, ifname, absent.is_empty()) else {
            return Err(missing(&absent));
        };
        check_container_id(&container_id).map_err(|why| invalid("CNI_CONTAINERID", &container_id, why))?;
        check_ifname(&ifname).map_err(|why| invalid("CNI_IFNAME", &ifname, why))?;
        let netns = match netns {
            Some(path) if with_netns && !path.starts_with('/') => {
                return Err(invalid("CNI_NETNS", &path, "is not an absolute path"));
            }
            other => other.filter(|_| with_netns).map(PathBuf::from),
        };
        // What the runtime adds for DEL and CHECK is of no use there, and no reason to fail.
        let args = match (verb, get("CNI_ARGS")?) {
            (Verb::Add, Some(text)) => parse_args(&text)?,
            _ => PodArgs::default(),
        };
        Ok(Self { verb, attachment: Some(Attachment { container_id, ifname }), netns, args })
    }
}

fn missing(names: &[&str]) -> Error {
    Error::new(Code::ENVIRONMENT, format!("required environment variables are missing: {}", names.join(", ")))
}

fn invalid(name: &str, value: &str, why: &str) -> Error {
    let shown: String = value.chars().take(256).collect();
    Error::because(
        Code::ENVIRONMENT,
        format!("invalid environment variable {name}"),
        format!("{shown:?} {why}"),
    )
}

/// Letters, digits, underscore, dot and hyphen, beginning with a letter or digit (SPEC.md, section 2).
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

pub(super) fn check_container_id(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_CONTAINER_ID {
        return Err("is longer than 200 characters");
    }
    if !is_name(text) {
        return Err("must begin with a letter or digit and go on with those, underscore, dot or hyphen");
    }
    Ok(())
}

/// As the kernel sees it (`dev_valid_name`, net/core/dev.c).
pub(super) fn check_ifname(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_IFNAME {
        return Err("is longer than 15 bytes");
    }
    if text == "." || text == ".." {
        return Err("is not a name of an interface");
    }
    if text.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
        return Err("has a slash, a colon, white space or a control character");
    }
    Ok(())
}

/// `KEY=VALUE` pairs separated by semicolons. A key that netd does not know is an error unless
/// `IgnoreUnknown` says otherwise, as the reference implementation has it (libcni, `types.LoadArgs`).
fn parse_args(text: &str) -> Result<PodArgs, Error> {
    let bad = |why: &str| invalid("CNI_ARGS", text, why);
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let (mut unknown, mut ignore) = (None, false);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(bad(&format!("has {pair:?}, which is not KEY=VALUE")));
        };
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore = matches!(value, "1" | "true" | "TRUE" | "True"),
            other => unknown = Some(other),
        }
    }
    if let (Some(key), false) = (unknown, ignore) {
        return Err(bad(&format!("has the unknown key {key:?}, and no IgnoreUnknown=1")));
    }
    let pod = match (namespace.filter(|text| !text.is_empty()), name.filter(|text| !text.is_empty())) {
        (None, None) => None,
        (Some(namespace), Some(name)) => {
            for (key, value) in [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)] {
                if !is_dns_subdomain(value) {
                    return Err(bad(&format!("has {key} that is not a DNS name")));
                }
            }
            Some(ObjectName::new(namespace, name))
        }
        _ => return Err(bad("has only one of K8S_POD_NAMESPACE and K8S_POD_NAME")),
    };
    Ok(PodArgs { pod, uid: uid.filter(|text| !text.is_empty()).map(str::to_owned) })
}

/// RFC 1123 as Kubernetes reads it; it also makes the name safe in a file's name.
fn is_dns_subdomain(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            label.starts_with(edge) && label.ends_with(edge) && label.chars().all(|c| edge(c) || c == '-')
        })
}
