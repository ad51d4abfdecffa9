use super::*;
use crate::cni::types::Attachment;
use crate::model::ObjectName;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

type Env = Vec<(&'static str, &'static str)>;

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
];

fn with(changes: &[(&'static str, &'static str)]) -> Env {
    let mut env: Env =
        ADD.into_iter().filter(|(name, _)| changes.iter().all(|(other, _)| name != other)).collect();
    env.extend(changes);
    env
}

fn parse(env: &[(&'static str, &'static str)], stdin: &str) -> Result<Invocation, (Version, Error)> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    Invocation::parse(&|name| env.get(name).map(OsString::from), || Ok(stdin.as_bytes().to_vec()))
}

fn refusal(env: &[(&'static str, &'static str)], stdin: &str) -> (u32, String) {
    let (_, error) = parse(env, stdin).unwrap_err();
    (error.code.0, format!("{}: {}", error.msg, error.details).trim_end_matches(": ").to_owned())
}

const CONFIG: &str = r#"{"cniVersion": "1.1.0", "name": "netd", "type": "netd"}"#;

#[test]
fn add_is_parsed_with_all_it_brings() {
    let env = with(&[(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1;X=",
    )]);
    let stdin = json!({
        "cniVersion": "1.1.0", "name": "netd", "type": "netd", "socket": "/s", "stateDir": "/d", "bpffs": "/b",
        "capabilities": {"ips": true}, "ipMasq": false, "ipam": {}, "unknown": [1],
        "runtimeConfig": {"ips": ["10.0.0.5/24", "fd00::5"], "portMappings": []},
        "dns": {"nameservers": ["10.96.0.10"], "search": null},
        "prevResult": null,
    });
    let Invocation { version, command, settings } = parse(&env, &stdin.to_string()).unwrap();
    assert_eq!(version, Version::V1_1_0);
    assert_eq!(settings.socket, Path::new("/s"));
    assert_eq!(settings.ledger(), Path::new("/d/ledger.json"));
    assert_eq!(settings.bpffs, Path::new("/b"));
    let Command::Add(add) = command else { panic!("{command:?}") };
    assert_eq!(add.attachment, Attachment { container_id: "c1".into(), ifname: "eth0".into() });
    assert_eq!(add.netns, Path::new("/run/netns/c1"));
    assert_eq!(add.pod, Some(ObjectName::new("shop", "web-0")));
    assert_eq!(add.pod_uid.as_deref(), Some("u1"));
    assert_eq!(add.fixed, ["10.0.0.5", "fd00::5"].map(|text| text.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(add.dns.unwrap().nameservers, ["10.96.0.10"]);
    assert_eq!(add.previous, None);
    let wire = serde_json::to_string(&parse(&env, CONFIG).unwrap().settings.socket).unwrap();
    assert_eq!(wire, "\"/run/netd/netd.sock\"");
}

#[test]
fn environment_that_is_missing_or_invalid_is_code_4_and_named() {
    let all = "required environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME";
    assert_eq!(refusal(&[("CNI_COMMAND", "ADD")], CONFIG), (4, all.to_owned()));
    assert_eq!(
        refusal(&with(&[("CNI_NETNS", "")]), CONFIG).1,
        "required environment variables are missing: CNI_NETNS"
    );
    assert_eq!(refusal(&[], "").1, "required environment variables are missing: CNI_COMMAND");
    let long = "a".repeat(201).leak();
    let cases: [(&'static str, &'static str, &str); 14] = [
        ("CNI_COMMAND", "add", "\"add\" is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"),
        ("CNI_CONTAINERID", "../x", "\"../x\" must begin with a letter or digit"),
        ("CNI_CONTAINERID", "a b", "\"a b\" must begin with"),
        ("CNI_CONTAINERID", long, "is longer than 200 characters"),
        ("CNI_IFNAME", "sixteencharacter", "is longer than 15 bytes"),
        ("CNI_IFNAME", "..", "is not a name of an interface"),
        ("CNI_IFNAME", "a/b", "has a slash"),
        ("CNI_IFNAME", "a:b", "a colon"),
        ("CNI_IFNAME", "a b", "white space"),
        ("CNI_NETNS", "netns", "\"netns\" is not an absolute path"),
        ("CNI_ARGS", "A", "has \"A\", which is not KEY=VALUE"),
        ("CNI_ARGS", "A=1", "has the unknown key \"A\""),
        ("CNI_ARGS", "K8S_POD_NAME=web", "has only one of K8S_POD_NAMESPACE and K8S_POD_NAME"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=x;K8S_POD_NAME=../../etc", "has K8S_POD_NAME that is not a DNS name"),
    ];
    for (name, value, why) in cases {
        let (code, text) = refusal(&with(&[(name, value)]), CONFIG);
        assert_eq!(code, 4, "{text}");
        assert!(text.starts_with(&format!("invalid environment variable {name}: ")), "{text}");
        assert!(text.contains(why), "{text}");
    }
    let bytes = |name: &str| (name == "CNI_COMMAND").then(|| OsString::from_vec(vec![b'A', 0xff]));
    let (_, error) = Invocation::parse(&bytes, || Ok(Vec::new())).unwrap_err();
    assert_eq!(error.code, Code::ENVIRONMENT);
}

#[test]
fn del_works_with_whatever_else_is_wrong() {
    let env = with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "garbage"), ("CNI_ARGS", "===")]);
    let stdin = r#"{"cniVersion": "0.3.1", "name": "netd", "prevResult": [7, {"ips": "no"}], "runtimeConfig": 5,
        "ipam": {"type": "host-local"}, "dns": true}"#;
    let Command::Del(del) = parse(&env, stdin).unwrap().command else { panic!() };
    assert_eq!(del.attachment.container_id, "c1");
    let bare: Env = with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]);
    assert!(parse(&bare, CONFIG).is_ok());
}

#[test]
fn versions_are_code_1() {
    for text in ["", "0.1.0", "0.3.0", "1.2.0", "2", "1.1.0 "] {
        let stdin = json!({"cniVersion": text, "name": "netd"}).to_string();
        let (version, error) = parse(&ADD, &stdin).unwrap_err();
        assert_eq!((version, error.code), (Version::LATEST, Code::VERSION));
        assert!(error.details.ends_with("netd speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", error.details);
    }
    for (command, old, since) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
    {
        let stdin = json!({"cniVersion": old, "name": "netd"}).to_string();
        let (version, error) = parse(&with(&[("CNI_COMMAND", command)]), &stdin).unwrap_err();
        assert_eq!(
            (version.as_str(), error.code),
            (old, Code::VERSION),
            "the answer is in the version asked in"
        );
        assert_eq!(error.details, format!("cniVersion is {old}, the command came with {since}"));
    }
}

#[test]
fn each_bad_configuration_has_its_code() {
    let check = with(&[("CNI_COMMAND", "CHECK")]);
    let gc: Env = vec![("CNI_COMMAND", "GC")];
    let base = |more: Value| {
        let mut all = json!({"cniVersion": "1.1.0", "name": "netd"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all.to_string()
    };
    let cases: Vec<(&Env, String, u32, &str)> = vec![
        (&check, "not json".into(), 6, "the network configuration is not a JSON object"),
        (&check, "[1]".into(), 6, "the network configuration is not a JSON object"),
        (&check, String::new(), 6, "EOF while parsing"),
        (&check, "[".repeat(100_000), 6, "the network configuration is not a JSON object"),
        (&check, base(json!({"cniVersion": 1})), 6, "cannot decode cniVersion: 1 is not a string"),
        (&check, base(json!({"name": null})), 7, "the network configuration has no name"),
        (&check, base(json!({"name": "a/b"})), 7, "invalid name of the network: \"a/b\""),
        (&check, base(json!({})), 7, "CHECK without prevResult"),
        (
            &check,
            base(json!({"prevResult": {}, "socket": "run/x"})),
            7,
            "invalid socket: run/x is not an absolute path",
        ),
        (
            &check,
            base(json!({"prevResult": {"ips": [{"address": "10.0.0.300/24"}]}})),
            6,
            "cannot decode prevResult",
        ),
        (&gc, base(json!({})), 7, "GC without cni.dev/valid-attachments"),
        (&gc, base(json!({"cni.dev/valid-attachments": 5})), 6, "5 is not a list"),
        (
            &gc,
            base(json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]})),
            6,
            "containerID and ifname",
        ),
    ];
    for (env, stdin, code, why) in &cases {
        let found = refusal(env, stdin);
        assert!(found.0 == *code && found.1.contains(why), "{found:?}, not {code} {why}");
    }
    for (more, key) in [
        (json!({"ipam": {"type": "host-local"}}), r#"ipam={"type":"host-local"}"#),
        (json!({"ipMasq": true}), "ipMasq=true"),
        (json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}), r#"runtimeConfig.mac="02:00:00:00:00:01""#),
    ] {
        let found = refusal(&ADD, &base(more));
        assert!(found.0 == 2 && found.1.contains(key), "{found:?}");
    }
    let ips = base(json!({"runtimeConfig": {"ips": ["10.0.0.x"]}}));
    assert_eq!(refusal(&ADD, &ips).0, 6);
}

#[test]
fn gc_takes_both_names_of_its_list_and_null() {
    let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
    for (key, value, kept) in [
        ("cni.dev/valid-attachments", list.clone(), 1),
        ("cni.dev/attachments", list, 1),
        ("cni.dev/valid-attachments", json!([]), 0),
        ("cni.dev/valid-attachments", Value::Null, 0),
    ] {
        let stdin = json!({"cniVersion": "1.1.0", "name": "netd", key: value}).to_string();
        let Command::Gc(gc) = parse(&[("CNI_COMMAND", "GC")], &stdin).unwrap().command else { panic!() };
        assert_eq!((gc.network.as_str(), gc.valid.len()), ("netd", kept));
    }
}

#[test]
fn version_is_answered_in_kind() {
    let env = [("CNI_COMMAND", "VERSION")];
    for (stdin, said) in
        [("", "1.1.0"), ("  \n", "1.1.0"), ("{}", "1.1.0"), (r#"{"cniVersion":"0.2.0"}"#, "0.2.0")]
    {
        let Command::Version(asked) = parse(&env, stdin).unwrap().command else { panic!() };
        let shown = serde_json::to_string(&VersionInfo::new(asked)).unwrap();
        let list = r#""supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]"#;
        assert_eq!(shown, format!(r#"{{"cniVersion":"{said}",{list}}}"#));
    }
    assert_eq!(refusal(&env, "garbage").0, 6);
}

fn sample() -> AttachResult {
    serde_json::from_value(json!({
        "interfaces": [
            {"name": "nd0123", "mac": "02:6e:65:74:64:01", "mtu": 1500},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": "/run/netns/c1"},
        ],
        "ips": [
            {"address": "10.0.0.5/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::5/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
    }))
    .unwrap()
}

#[test]
fn results_in_every_version() {
    let show = |version| serde_json::to_string_pretty(&sample().in_version(version)).unwrap();
    insta::assert_snapshot!(show(Version::V0_3_1), @r#"
    {
      "cniVersion": "0.3.1",
      "interfaces": [
        {
          "name": "nd0123",
          "mac": "02:6e:65:74:64:01"
        },
        {
          "name": "eth0",
          "mac": "02:00:00:00:00:02",
          "sandbox": "/run/netns/c1"
        }
      ],
      "ips": [
        {
          "version": "4",
          "address": "10.0.0.5/32",
          "gateway": "169.254.1.1",
          "interface": 1
        },
        {
          "version": "6",
          "address": "fd00::5/128",
          "gateway": "fe80::1",
          "interface": 1
        }
      ],
      "routes": [
        {
          "dst": "0.0.0.0/0",
          "gw": "169.254.1.1"
        },
        {
          "dst": "::/0",
          "gw": "fe80::1"
        }
      ]
    }
    "#);
    assert_eq!(show(Version::V0_4_0), show(Version::V0_3_1).replace("0.3.1", "0.4.0"));
    insta::assert_snapshot!(show(Version::V1_1_0), @r#"
    {
      "cniVersion": "1.1.0",
      "interfaces": [
        {
          "name": "nd0123",
          "mac": "02:6e:65:74:64:01",
          "mtu": 1500
        },
        {
          "name": "eth0",
          "mac": "02:00:00:00:00:02",
          "mtu": 1500,
          "sandbox": "/run/netns/c1"
        }
      ],
      "ips": [
        {
          "address": "10.0.0.5/32",
          "gateway": "169.254.1.1",
          "interface": 1
        },
        {
          "address": "fd00::5/128",
          "gateway": "fe80::1",
          "interface": 1
        }
      ],
      "routes": [
        {
          "dst": "0.0.0.0/0",
          "gw": "169.254.1.1"
        },
        {
          "dst": "::/0",
          "gw": "fe80::1"
        }
      ]
    }
    "#);
    let without_mtu = show(Version::V1_1_0).replace(",\n      \"mtu\": 1500", "");
    assert_eq!(show(Version::V1_0_0), without_mtu.replace("1.1.0", "1.0.0"));
}

#[test]
fn a_chain_keeps_what_came_before() {
    let previous: AttachResult = serde_json::from_value(json!({
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "lo", "sandbox": "/run/netns/c1", "pciID": "0000:00:1f.6"}],
        "ips": [{"version": "4", "address": "192.0.2.9/24", "interface": 0}, {"version": "4", "address": "192.0.2.10/24"}],
        "routes": [{"dst": "198.51.100.0/24", "mtu": 1400}],
        "dns": {"nameservers": ["192.0.2.1"]},
        "vendor": {"x": 1},
    }))
    .unwrap();
    let merged = previous.followed_by(sample()).in_version(Version::V1_0_0);
    let value = serde_json::to_value(merged).unwrap();
    assert_eq!(value["cniVersion"], "1.0.0");
    assert_eq!(value["interfaces"][0]["pciID"], "0000:00:1f.6");
    assert_eq!(value["interfaces"][2]["name"], "eth0");
    let indexes: Vec<_> = value["ips"].as_array().unwrap().iter().map(|ip| ip["interface"].clone()).collect();
    assert_eq!(indexes, [json!(0), Value::Null, json!(2), json!(2)]);
    assert_eq!(value["ips"][0].get("version"), None);
    assert_eq!(value["routes"][0]["mtu"], 1400);
    assert_eq!(value["dns"]["nameservers"][0], "192.0.2.1");
    assert_eq!(value["vendor"]["x"], 1);
}

#[test]
fn errors_as_the_specification_has_them() {
    let error = Error::because(Code::TRY_LATER, "later", "why");
    let text = serde_json::to_string(&error.object(Version::V1_0_0)).unwrap();
    assert_eq!(text, r#"{"cniVersion":"1.0.0","code":11,"msg":"later","details":"why"}"#);
    assert_eq!(error.to_string(), "later: why (CNI code 11)");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), verb in 0..6_usize) {
        let verb = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"][verb];
        let env: HashMap<_, _> = with(&[("CNI_COMMAND", verb)]).into_iter().collect();
        let parsed = Invocation::parse(&|name| env.get(name).map(OsString::from), || Ok(bytes.clone()));
        if serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).is_err()
            && (verb != "VERSION" || !bytes.trim_ascii().is_empty())
        {
            prop_assert_eq!(parsed.unwrap_err().1.code, Code::DECODE);
        }
    }

    #[test]
    fn no_json_makes_it_panic(
        key in prop::sample::select(vec![
            "cniVersion", "name", "prevResult", "runtimeConfig", "ipam", "dns", "socket", "cni.dev/valid-attachments",
        ]),
        value in json_value(), verb in 0..6_usize,
    ) {
        let verb = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"][verb];
        let mut config = json!({"cniVersion": "1.1.0", "name": "netd"});
        config[key] = value;
        if let Err((_, error)) = parse(&with(&[("CNI_COMMAND", verb)]), &config.to_string()) {
            prop_assert!([1, 2, 6, 7].contains(&error.code.0), "{error}");
        }
    }

    #[test]
    fn environment_is_accepted_exactly_when_it_is_valid(id in "\\PC{0,12}", ifname in "\\PC{0,18}") {
        let env = |name: &str| Some(OsString::from(match name {
            "CNI_COMMAND" => "DEL".to_owned(),
            "CNI_CONTAINERID" => id.clone(),
            "CNI_IFNAME" => ifname.clone(),
            _ => return None,
        }));
        let good_id = !id.is_empty() && id.chars().enumerate().all(|(n, c)|
            c.is_ascii_alphanumeric() || (n > 0 && "_.-".contains(c)));
        let good_ifname = (1..=15).contains(&ifname.len()) && ifname != "." && ifname != ".."
            && !ifname.contains(['/', ':']) && !ifname.chars().any(char::is_whitespace);
        let parsed = Invocation::parse(&env, || Ok(CONFIG.as_bytes().to_vec()));
        prop_assert_eq!(parsed.is_ok(), good_id && good_ifname);
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let keys = prop::sample::select(vec![
            "ips",
            "interfaces",
            "routes",
            "dns",
            "address",
            "containerID",
            "ifname",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(keys.prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
