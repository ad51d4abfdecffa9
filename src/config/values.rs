//! The kinds of value a key can have: how each is written, and what is wrong with one that is not.
//!
//! A refusal says what is wrong and, where it can be known, what to write instead.

use super::duration;
use super::read::{Fault, Scalar, ValueKind, closest};
use crate::telemetry::config::Format;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// `IFNAMSIZ` less the final NUL.
const INTERFACE_NAME: usize = 15;

/// Longest file name on Linux, `NAME_MAX`.
const FILE_NAME: usize = 255;

pub(super) const BOOLEAN: ValueKind<bool> = ValueKind {
    what: "`true` or `false`",
    parse: |s| match s.text {
        "true" if !s.quoted => Ok(true),
        "false" if !s.quoted => Ok(false),
        text => Err(Fault::new(
            "is neither `true` nor `false`",
            match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "1" | "true" => "write `true`",
                "no" | "off" | "0" | "false" => "write `false`",
                _ => "",
            },
        )),
    },
};

/// Of what is turned on and off.
pub(super) const SWITCH: ValueKind<bool> = ValueKind {
    what: "`on` or `off`",
    parse: |s| match s.text {
        "on" => Ok(true),
        "off" => Ok(false),
        text => Err(Fault::new(
            "is neither `on` nor `off`",
            match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "1" | "true" => "write `on`",
                "no" | "off" | "0" | "false" => "write `off`",
                _ => "",
            },
        )),
    },
};

pub(super) const DURATION: ValueKind<Duration> =
    ValueKind { what: "a duration such as `30s`", parse: |s| duration::parse(s.text) };

pub(super) const NUMBER: ValueKind<u32> = ValueKind { what: "a whole number", parse: number };

fn number(scalar: Scalar<'_>) -> Result<u32, Fault> {
    let text = scalar.text;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits && !scalar.quoted && (text.len() == 1 || !text.starts_with('0')) {
        return text.parse().map_err(|_| Fault::new("is too large", format!("must be at most {}", u32::MAX)));
    }
    let label = if digits && scalar.quoted { "write it without quotes" } else { "write digits only" };
    Err(Fault::new("is not a whole number", label))
}

/// `auto` is none.
pub(super) const NUMBER_OR_AUTO: ValueKind<Option<u32>> = ValueKind {
    what: "`auto` or a whole number",
    parse: |s| if s.text == "auto" { Ok(None) } else { number(s).map(Some) },
};

/// Checks a range; the fault says the bounds.
pub(super) fn within<T: PartialOrd + Copy>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> Result<(), Fault> {
    if range.contains(&value) {
        return Ok(());
    }
    let what = if value < *range.start() { "small" } else { "large" };
    Err(Fault::new(
        format!("is too {what}"),
        format!("must be {} to {}", show(*range.start()), show(*range.end())),
    ))
}

pub(super) const PATH: ValueKind<PathBuf> = ValueKind {
    what: "an absolute path",
    parse: |s| {
        let path = PathBuf::from(s.text);
        if s.text.is_empty() {
            return Err(Fault::new("is empty", "write an absolute path"));
        }
        if s.text.contains(char::is_control) {
            return Err(Fault::new("holds a control character", ""));
        }
        if !path.is_absolute() {
            return Err(Fault::new("is a relative path", "write it from `/` on"));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(Fault::new("holds `..`", "write the path without it"));
        }
        Ok(path)
    },
};

pub(super) const CONFLIST: ValueKind<String> = ValueKind {
    what: "a file name that ends in `.conflist`",
    parse: |s| {
        let label = "such as `10-netd.conflist`";
        if s.text.contains('/') {
            return Err(Fault::new("is a path, not a bare file name", label));
        }
        // Runtimes skip other names: they read a list of plugins from `.conflist` only.
        if s.text.len() > FILE_NAME
            || s.text.contains(char::is_control)
            || s.text.starts_with('.')
            || !s.text.ends_with(".conflist")
        {
            return Err(Fault::new("is not a visible file name that ends in `.conflist`", label));
        }
        Ok(s.text.to_owned())
    },
};

pub(super) const NODE_NAME: ValueKind<String> = ValueKind {
    what: "the name of a Node",
    parse: |s| {
        if is_node_name(s.text) {
            return Ok(s.text.to_owned());
        }
        let lower = s.text.to_ascii_lowercase();
        let label = if is_node_name(&lower) {
            format!("Node names are lower case: `{lower}`")
        } else {
            "use `a`-`z`, `0`-`9`, `-` and `.`, up to 253 characters".to_owned()
        };
        Err(Fault::new("is not the name of a Node", label))
    },
};

/// RFC 1123 subdomain, as Kubernetes names Nodes.
pub(super) fn is_node_name(name: &str) -> bool {
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// As `dev_valid_name` in the kernel's net/core/dev.c, less control characters.
pub(super) const INTERFACE: ValueKind<String> = ValueKind {
    what: "the name of an interface",
    parse: |s| {
        if s.text.len() > INTERFACE_NAME {
            return Err(Fault::new(
                "is too long for an interface",
                format!("at most {INTERFACE_NAME} bytes"),
            ));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_control() || c.is_whitespace();
        if matches!(s.text, "" | "." | "..") || s.text.contains(bad) {
            return Err(Fault::new("is not the name of an interface", "such as `eth0`"));
        }
        Ok(s.text.to_owned())
    },
};

/// Where a port is listened on; `none` is none.
pub(super) const LISTEN: ValueKind<Option<SocketAddr>> = ValueKind {
    what: "`none` or an address with a port such as `127.0.0.1:9090`",
    parse: |s| {
        if s.text == "none" {
            return Ok(None);
        }
        s.text.parse().map(Some).map_err(|_| {
            let (host, port) = s.text.rsplit_once(':').unwrap_or((s.text, ""));
            let label = match port.parse::<u16>() {
                Ok(port) if host.is_empty() || host == "*" => {
                    format!("write `0.0.0.0:{port}` or `[::]:{port}`")
                }
                Ok(port) if host == "localhost" => format!("write `127.0.0.1:{port}`"),
                Ok(port) if host.parse::<Ipv6Addr>().is_ok() => format!("write `[{host}]:{port}`"),
                Ok(_) => "write an address: names are not looked up".to_owned(),
                Err(_) => "write `none`, or an address with a port such as `127.0.0.1:9090`".to_owned(),
            };
            Fault::new("is not an address with a port", label)
        })
    },
};

pub(super) const FILTER: ValueKind<String> = ValueKind {
    what: "a log filter such as `info`",
    parse: |s| {
        const LEVELS: [&str; 7] = ["off", "error", "warn", "warning", "info", "debug", "trace"];
        if s.text.trim().is_empty() {
            return Err(Fault::new("is empty", "write a level such as `info`"));
        }
        if s.text.contains(char::is_control) {
            return Err(Fault::new("holds a control character", ""));
        }
        if let Err(error) = EnvFilter::try_new(s.text) {
            return Err(Fault::new(
                format!("is not a log filter: {error}"),
                "such as `info` or `info,netd::cni=debug`",
            ));
        }
        // A misspelt level is a valid filter: everything of a target of that name, and nothing else.
        for word in s.text.split(',').map(|w| w.trim().to_ascii_lowercase()) {
            let level = closest(&word, &LEVELS).map(|l| if l == "warning" { "warn" } else { l });
            if let Some(level) = level.filter(|l| *l != word) {
                return Err(Fault::new(format!("has no level `{word}`"), format!("did you mean `{level}`?")));
            }
        }
        Ok(s.text.to_owned())
    },
};

pub(super) const FORMAT: ValueKind<Format> = ValueKind {
    what: "`text` or `json`",
    parse: |s| match s.text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(Fault::new("is neither `text` nor `json`", "")),
    },
};

/// A range pods can have their addresses from.
pub(super) const POD_CIDR: ValueKind<IpNet> =
    ValueKind { what: "a range such as `10.42.0.0/24`", parse: pod_cidr };

fn pod_cidr(scalar: Scalar<'_>) -> Result<IpNet, Fault> {
    let text = scalar.text;
    let net: IpNet = text.parse().map_err(|_| not_a_cidr(text))?;
    if net.addr() != net.network() {
        let message = format!("has host bits set: {net}");
        return Err(Fault::new(message, format!("did you mean `{}`?", net.trunc())));
    }
    let longest = if net.addr().is_ipv4() { 30 } else { 126 };
    if net.prefix_len() > longest {
        return Err(Fault::new(format!("is too small a range: {net}"), format!("at most a /{longest}")));
    }
    if let Some((what, taken)) = reserved().into_iter().find(|(_, r)| overlap(r, &net)) {
        return Err(Fault::new(
            format!("covers {what} addresses, which pods cannot have"),
            format!("overlaps {taken}"),
        ));
    }
    Ok(net)
}

fn not_a_cidr(text: &str) -> Fault {
    let message = format!("is not a range of addresses: `{text}`");
    match text.split_once('/') {
        None => match text.parse::<IpAddr>() {
            Ok(_) => Fault::new(message, format!("has no prefix length, such as `{text}/24`")),
            Err(_) => Fault::new(message, "write it such as `10.42.0.0/24` or `fd00:42::/64`"),
        },
        Some((address, length)) => match (address.parse::<IpAddr>(), length.parse::<u32>()) {
            (Err(_), _) => Fault::new(message, "the address cannot be read"),
            (Ok(ip), Ok(_)) => Fault::new(
                message,
                format!("the prefix length is at most {}", if ip.is_ipv4() { 32 } else { 128 }),
            ),
            (Ok(_), Err(_)) => Fault::new(message, "the prefix length must be a number"),
        },
    }
}

/// Ranges that mean something else everywhere (RFC 6890); 169.254/16 and fe80::/10 hold the pods' gateway.
fn reserved() -> [(&'static str, IpNet); 9] {
    let v4 = |a, b, c, d, len| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len));
    let v6 = |a, len| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0), len));
    let mapped = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
    let loopback = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);
    [
        ("\"this network\"", v4(0, 0, 0, 0, 8)),
        ("loopback", v4(127, 0, 0, 0, 8)),
        ("link-local", v4(169, 254, 0, 0, 16)),
        ("multicast", v4(224, 0, 0, 0, 4)),
        ("reserved", v4(240, 0, 0, 0, 4)),
        ("loopback", IpNet::V6(loopback)),
        ("IPv4-mapped", IpNet::V6(mapped)),
        ("link-local", v6(0xfe80, 10)),
        ("multicast", v6(0xff00, 8)),
    ]
}

/// True if the two share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// For bounds of plain numbers.
pub(super) fn plain(value: impl Display) -> String {
    value.to_string()
}
