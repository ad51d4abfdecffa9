//! The parser as its users meet it: text in, configuration or rendered errors out.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn loader(variables: &[(&str, &str)]) -> Loader {
    let environment = variables.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    let mut loader = Loader::new(Some("/etc/netd/netd.yaml".into()), environment);
    loader.host = "Host-1".into();
    loader
}

fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Error> {
    loader(variables).parse(Some(text.as_bytes().to_vec()))
}

fn load(text: &str) -> Loaded {
    load_with(text, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn errors(text: &str) -> String {
    errors_with(text, &[])
}

fn errors_with(text: &str, variables: &[(&str, &str)]) -> String {
    load_with(text, variables).expect_err("a bad configuration").to_string()
}

#[test]
fn nothing_gives_the_defaults() {
    let loaded = load("");
    assert_eq!(loaded.config.agent.node, "host-1");
    assert_eq!(loaded.config.agent.socket(), Path::new("/run/netd/netd.sock"));
    assert!(loaded.values.iter().all(|v| v.origin == Origin::Default));
    for text in ["# only a comment\n", "---\n", "cni:\nipam:\n", "\u{feff}", "{}"] {
        assert_eq!(load(text).config, loaded.config, "{text:?}");
    }
}

#[test]
fn the_example_passes_and_says_the_defaults() {
    let example = load(EXAMPLE);
    assert_eq!(example.config, load("").config);
    let silent: Vec<_> =
        example.values.iter().filter(|v| v.origin == Origin::Default).map(|v| v.key).collect();
    assert_eq!(silent, ["node.name"], "the only default that is not a constant");
    let named = EXAMPLE.replace("# name: node-1", "name: node-1");
    assert_eq!(load(&named).config.agent.node, "node-1");
}

#[test]
fn the_list_of_keys_is_the_list_of_what_is_read() {
    let mut sources = Sources::default();
    let source = sources.add_file(Path::new("f"), String::new());
    let root = Node { at: sources.whole(source), kind: Kind::Null };
    let (config, outcome) = sections::read(&sources, &root, "host");
    let read: BTreeSet<_> = outcome.origins.keys().map(String::as_str).collect();
    let listed: BTreeSet<_> = config.keys().iter().map(|k| k.path).collect();
    assert_eq!(read, listed);
}

#[test]
fn the_environment_stands_over_the_file() {
    let file = "ipam:\n  cool_down: 1m\n  pod_cidrs: [10.0.0.0/24]\nlog: {filter: debug}\n";
    let loaded = load_with(
        file,
        &[
            ("NETD_IPAM__POD_CIDRS", "10.1.0.0/24, fd00:1::/64"),
            ("NETD_NETWORK__MTU", "9000"),
            ("NETD_NODE__NAME", "edge"),
            ("NETD_IPAM__DRAINING", "[10.2.0.0/24]"),
            ("NETD_NETWORK__UPLINKS", ""),
            ("NETD_PORT_80_TCP", "tcp://10.96.0.1:80"),
            ("PATH", "/bin"),
        ],
    )
    .expect("good");
    let config = &loaded.config;
    assert_eq!(config.ipam.cool_down.as_secs(), 60);
    assert_eq!(
        config.ipam.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.0/24", "fd00:1::/64"]
    );
    assert_eq!(config.ipam.draining.len(), 1);
    assert_eq!(config.net.mtu, Some(9000));
    assert_eq!(config.agent.node, "edge");
    assert!(config.net.uplinks.is_empty());
    let origin = |key: &str| loaded.values.iter().find(|v| v.key == key).expect(key).origin.to_string();
    assert_eq!(origin("ipam.cool_down"), "/etc/netd/netd.yaml:2:14");
    assert_eq!(origin("ipam.pod_cidrs"), "NETD_IPAM__POD_CIDRS");
    assert_eq!(origin("log.filter"), "/etc/netd/netd.yaml:4:15");
    assert_eq!(origin("log.format"), "default");
}

#[test]
fn an_error_in_a_variable_names_the_variable() {
    let text = errors_with(
        "",
        &[
            ("NETD_IPAM__COOL_DOWN", "30"),
            ("NETD_IPAM__POD_CIDRS", "10.0.0.0/24,10.9.0.1/24"),
            ("NETD_IPAM__COOLDOWN", "30s"),
            ("NETD_LOG_FILTER", "debug"),
            ("NETD_CNI__", "x"),
        ],
    );
    insta::assert_snapshot!(text, @r"
    error: unknown key `cooldown` in `ipam`
     --> NETD_IPAM__COOLDOWN
      |
      | NETD_IPAM__COOLDOWN=30s
      | ^^^^^^^^^^^^^^^^^^^ did you mean NETD_IPAM__COOL_DOWN?

    error: `ipam.cool_down` has no unit
     --> NETD_IPAM__COOL_DOWN
      |
      | NETD_IPAM__COOL_DOWN=30
      |                      ^^ write `30s` for seconds, or use ms, m or h

    error: `ipam.pod_cidrs` has host bits set: 10.9.0.1/24
     --> NETD_IPAM__POD_CIDRS
      |
      | NETD_IPAM__POD_CIDRS=10.0.0.0/24,10.9.0.1/24
      |                                  ^^^^^^^^^^^ did you mean `10.9.0.0/24`?

    error: NETD_CNI__ names no key
     --> NETD_CNI__
      |
      | NETD_CNI__=x
      | ^^^^^^^^^^
      = help: write the levels of a key with `__` between them, such as NETD_IPAM__COOL_DOWN

    error: the variable NETD_LOG_FILTER sets nothing
      = help: levels are separated by `__`: did you mean NETD_LOG__FILTER?

    5 errors in the configuration
    ");
}

#[test]
fn a_value_can_be_an_alias_or_a_merge() {
    let loaded = load("cni: {sync_wait: &d 20s}\nipam: &i\n  cool_down: *d\n");
    assert_eq!(loaded.config.ipam.cool_down.as_secs(), 20);
    let text = errors("ipam: &i\n  cool_down: 30\nagent:\n  <<: *i\n");
    assert!(text.contains("netd.yaml:2:3") && text.contains("unknown key `cool_down` in `agent`"), "{text}");
}

#[test]
fn plain_text_is_not_guessed_at() {
    let config = load("node: {name: 010}\ncni: {install: false}\nnetwork: {mtu: 1500}\n").config;
    assert_eq!(config.agent.node, "010");
    assert_eq!(config.net.mtu, Some(1500));
    for bad in ["yes", "\"true\"", "0", "~", "True"] {
        let text = errors(&format!("cni: {{install: {bad}}}\n"));
        assert!(text.contains("`cni.install`"), "{text}");
    }
    for bad in ["1_500", "0x600", "1500.0", "\"1500\"", "01500", "99999999999999999999", "-1", "1e3"] {
        let text = errors(&format!("network: {{mtu: {bad}}}\n"));
        assert!(text.contains("`network.mtu` is"), "{text}");
    }
}

#[test]
fn ranges_that_share_an_address_are_refused_unless_one_is_being_drained() {
    let ok = load("ipam: {pod_cidrs: [10.0.0.0/24, 10.0.1.0/24], draining: [10.0.1.0/24]}\n");
    assert_eq!(ok.config.ipam.draining.len(), 1);
    for (pods, draining) in [
        ("10.0.0.0/24, 10.0.0.0/25", ""),
        ("10.0.0.0/24, 10.0.0.0/24", ""),
        ("10.0.0.0/24", "10.0.0.0/25"),
        ("10.0.0.0/25", "10.0.0.0/24"),
        ("", "10.0.0.0/24, 10.0.0.128/25"),
        ("\"fd00::/64\"", "\"fd00::/63\""),
    ] {
        let text = errors(&format!("ipam: {{pod_cidrs: [{pods}], draining: [{draining}]}}\n"));
        assert!(text.contains(":::") && text.ends_with("\n1 error in the configuration"), "{text}");
    }
}

#[test]
fn bad_values_are_refused_with_what_to_write_instead() {
    let cases = [
        ("ipam: {pod_cidrs: [10.0.0.7/24]}", "did you mean `10.0.0.0/24`?"),
        ("ipam: {pod_cidrs: [10.0.0.0]}", "no prefix length"),
        ("ipam: {pod_cidrs: [10.0.0.0/33]}", "at most 32"),
        ("ipam: {pod_cidrs: [10.0.0.0/31]}", "at most a /30"),
        ("ipam: {pod_cidrs: [169.254.0.0/24]}", "link-local"),
        ("ipam: {pod_cidrs: [0.0.0.0/0]}", "which pods cannot have"),
        ("ipam: {pod_cidrs: 10.0.0.0/24}", "write `[10.0.0.0/24]`"),
        ("ipam: {pod_cidrs: {a: b}}", "must be a list, not a section"),
        ("ipam: {pod_cidrs: [[10.0.0.0/24]]}", "not a list"),
        ("ipam: {cool_down: 25h}", "must be 0s to 24h"),
        ("ipam: {podCIDRs: []}", "did you mean `pod_cidrs`?"),
        ("ipam: 5", "`ipam` is a section, not a plain value"),
        ("- a", "made of sections, not a list"),
        ("cool_down: 5s", "did you mean `ipam.cool_down`?"),
        ("networks: {}", "did you mean `network`?"),
        ("bgp: {}", "sections: node, paths"),
        ("paths: {run: run/netd}", "write it from `/` on"),
        ("paths: {state: /var/../etc}", "holds `..`"),
        ("cni: {conf_name: /etc/x.conflist}", "not a bare file name"),
        ("cni: {conf_name: netd.conf}", "ends in `.conflist`"),
        ("network: {uplinks: [averyverylongname]}", "at most 15 bytes"),
        ("network: {uplinks: [eth0, eth0]}", "`network.uplinks` has eth0 twice"),
        ("network: {mtu: 576}", "must be 1280 to 65535"),
        ("metrics: {listen: \":9090\"}", "write `0.0.0.0:9090`"),
        ("metrics: {listen: localhost:9090}", "write `127.0.0.1:9090`"),
        ("metrics: {listen: \"::1:9090\"}", "write `[::1]:9090`"),
        ("log: {filter: inof}", "did you mean `info`?"),
        ("log: {filter: netd=loud}", "is not a log filter"),
        ("log: {format: xml}", "neither `text` nor `json`"),
        ("node: {name: Node_1}", "`a`-`z`"),
        ("node: {name: Node-1}", "lower case: `node-1`"),
        ("datapath: {flows: 5}", "must be 1024 to 16777216"),
        ("datapath: {flows: 2048, flows_per_pod: 2049}", "must be at most 2048"),
        ("datapath: {flows_per_pod: 300000}", "at most 262144, the default of `datapath.flows`"),
        ("datapath: {flows_per_pod: 1}", "must be 2 to 16777216"),
        ("datapath: {timeouts: {one_way: 0s}}", "must be 1s to 720h"),
        ("datapath: {audit: {flows: true}}", "write `on`"),
        ("datapath: {audit: {rate: 0}}", "must be 1 to 5000"),
        ("datapath: {timeouts: {tcp: 1m}}", "keys of `datapath.timeouts`: tcp_established"),
    ];
    for (text, expected) in cases {
        let found = errors(text);
        assert!(found.contains(expected), "{text}: wanted {expected}\n{found}");
        assert!(found.contains("--> /etc/netd/netd.yaml:1:"), "{text}\n{found}");
        assert!(found.ends_with("\n1 error in the configuration"), "{text}\n{found}");
    }
}

#[test]
fn a_pods_share_is_a_quarter_of_the_table_unless_it_is_set() {
    let of = |text: &str| load(text).config.datapath;
    assert_eq!(of("").flows_per_pod, 65_536);
    assert_eq!(of("datapath: {flows: 16384}").flows_per_pod, 4_096);
    assert_eq!(of("datapath: {flows: 16384, flows_per_pod: 16384}").limits().rows_per_pod, 16_384);
    insta::assert_snapshot!(errors("datapath:\n  flows: 4096\n  flows_per_pod: 8192\n"), @r"
    error: `datapath.flows_per_pod` is more than the whole table
     --> /etc/netd/netd.yaml:3:18
      |
    3 |   flows_per_pod: 8192
      |                  ^^^^ must be at most 4096
     ::: /etc/netd/netd.yaml:2:10
      |
    2 |   flows: 4096
      |          ---- the table

    1 error in the configuration
    ");
}

#[test]
fn timeouts_are_whole_seconds() {
    let limits = |text: &str| load(text).config.datapath.limits();
    assert_eq!(limits(""), netd_bpf::flow::Limits::DEFAULT);
    let set = "datapath: {timeouts: {tcp_established: 6h, tcp_closed: 1500ms, two_way: 1m30s}}";
    let limits = limits(set);
    assert_eq!((limits.tcp_established, limits.tcp_closed, limits.two_way), (21_600, 2, 90));
    assert_eq!(limits.one_way, netd_bpf::flow::Limits::DEFAULT.one_way);
}

#[test]
fn a_host_without_a_usable_name_needs_one() {
    let mut loader = loader(&[]);
    loader.host = "my_host".into();
    let text = loader.parse(None).expect_err("no name").to_string();
    assert!(text.contains("`my_host`") && text.contains("set `node.name`"), "{text}");
    assert!(loader.parse(Some(b"node: {name: a}".to_vec())).is_ok());
}

#[test]
fn a_terminal_is_not_driven_by_what_is_echoed() {
    let text = errors("\"evil\\e[2J\": \"\u{202e}x\"\n");
    assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text:?}");
    let long = errors(&format!("node: {{name: {}}}\n", "x".repeat(10_000)));
    assert!(long.lines().all(|l| l.chars().count() < 300), "{long}");
    let far = errors(&format!("cni: {{bin_dir: /{}, install: 5}}\n", "x".repeat(1_000)));
    let shown: Vec<_> = far.lines().skip_while(|l| !l.contains('…')).collect();
    let column = shown[1].find('^').map(|i| shown[1][..i].chars().count());
    let five = shown[0].find('5').map(|i| shown[0][..i].chars().count());
    assert_eq!(column, five, "{far}");
}

#[test]
fn the_default_file_may_be_missing_but_a_named_one_may_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("netd.yaml");
    let error = Loader::new(Some(missing.clone()), []).load().expect_err("named");
    assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
    let mut loader = Loader::new(None, []);
    assert_eq!(loader.path(), Path::new(DEFAULT_PATH));
    loader.path = missing;
    assert_eq!(loader.load().expect("optional").file, None);
    let error = Loader::new(Some(folder.path().into()), []).load().expect_err("a folder");
    assert!(matches!(error, Error::Read { .. }));
    let binary = loader_file(folder.path(), b"node:\n  name: \xff\xfe\n");
    assert!(binary.to_string().contains("2:9"), "{binary}");
    let huge = loader_file(folder.path(), "#".repeat(2 << 20).as_bytes());
    assert!(matches!(huge, Error::Read { .. }));
}

fn loader_file(folder: &Path, bytes: &[u8]) -> Error {
    let path = folder.join("file.yaml");
    std::fs::write(&path, bytes).expect("written");
    Loader::new(Some(path), []).load().expect_err("bad")
}

#[test]
fn a_reload_says_what_changed_and_what_it_takes() {
    let old = load("node: {name: a}\n").config;
    let new = load(
        "node: {name: b}\nipam: {pod_cidrs: [10.0.0.0/24], cool_down: 1m30s}\nlog: {filter: debug}\ndatapath: {pods: 9}\n",
    )
    .config;
    let changes = diff(&old, &new);
    insta::assert_snapshot!(changes.to_string(), @r"
    node.name: a → b (needs a restart)
    ipam.pod_cidrs: [] → [10.0.0.0/24] (applies at once)
    ipam.cool_down: 30s → 1m30s (applies at once)
    datapath.pods: 1024 → 9 (needs a restart)
    log.filter: info → debug (applies at once)
    ");
    assert!(changes.needs_restart() && diff(&old, &old).is_empty());
}

#[test]
fn what_is_adopted_is_what_was_said_to_apply_at_once() {
    let old = load("node: {name: a}\n").config;
    let everything = "node: {name: b}\npaths: {run: /r, state: /s}\nsource: {directory: /d}\n\
        cni: {install: false, bin_dir: /b, conf_dir: /c, conf_name: x.conflist, sync_wait: 1s}\n\
        ipam: {pod_cidrs: [10.0.0.0/24], draining: [10.0.1.0/24], cool_down: 1s}\n\
        network: {uplinks: [eth0], mtu: 1400, node_routes: false}\n\
        datapath: {bpffs: /f, flows: 2048, flows_per_pod: 9, nursery: 2048, affinity: 64, frontends: 64, backends: 64, slots: 128, pods: 1,\
          policy_rows: 1024, policy_ranges: 4096, identities: 1024, blocks: 64,\
          timeouts: {tcp_established: 1s, tcp_opening: 1s, tcp_half_closed: 1s, tcp_closed: 1s, one_way: 1s, two_way: 1s},\
          audit: {flows: on, rate: 7}}\n\
        agent: {drain: 1s}\nmetrics: {listen: \"127.0.0.1:1\"}\nlog: {filter: debug, format: json}\n";
    let new = load(everything).config;
    let changes = diff(&old, &new);
    assert_eq!(changes.iter().count(), old.keys().len(), "every key is changed by this test");
    let mut adopted = old.clone();
    adopted.adopt(&new);
    let applied: Vec<_> = diff(&old, &adopted).iter().map(|c| c.key).collect();
    let at_once: Vec<_> = changes.iter().filter(|c| c.effect == Effect::AtOnce).map(|c| c.key).collect();
    assert_eq!(applied, at_once);
    assert!(diff(&adopted, &new).iter().all(|c| c.effect == Effect::Restart));
}

/// Text made of what configurations are made of, so that a good share gets past the scanner.
fn yamlish() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("ipam"),
        Just("cni"),
        Just("network"),
        Just("pod_cidrs"),
        Just("cool_down"),
        Just("mtu"),
        Just(": "),
        Just(":"),
        Just("\n"),
        Just("\n  "),
        Just("\n  - "),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just(", "),
        Just("10.0.0.0/24"),
        Just("fd00::/64"),
        Just("30s"),
        Just("&a "),
        Just("*a"),
        Just("<<"),
        Just("\""),
        Just("'"),
        Just("|"),
        Just("~"),
        Just("#"),
        Just("ü"),
        Just("\t"),
        Just("\r\n"),
        Just("!!str "),
        Just("? "),
        Just("---\n"),
        Just("\u{feff}"),
        Just("\u{2028}"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), yamlish()]) {
        if let Err(error) = load_with(&text, &[]) {
            prop_assert!(error.to_string().starts_with("error: "));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Err(error) = loader(&[]).parse(Some(bytes)) {
            prop_assert!(error.to_string().starts_with("error: "));
        }
    }

    #[test]
    fn no_variable_makes_it_panic(name in "(NODE|IPAM|CNI|X)(__[A-Z_]{0,9}){0,3}", value in any::<String>()) {
        if let Err(error) = load_with("", &[(&format!("NETD_{name}"), &value)]) {
            prop_assert!(error.to_string().starts_with("error: "));
        }
    }

    #[test]
    fn a_configuration_is_read_back_from_its_own_keys(
        pods in proptest::collection::btree_set(0_u8..200, 0..5),
        mtu in proptest::option::of(1280_u32..65_535),
        wait in 0_u64..120_000,
        install: bool,
    ) {
        let pods: Vec<_> = pods.iter().map(|n| format!("10.{n}.0.0/16")).collect();
        let mtu = mtu.map_or_else(|| "auto".to_owned(), |m| m.to_string());
        let text = format!(
            "cni: {{install: {install}, sync_wait: {wait}ms}}\nipam: {{pod_cidrs: [{}]}}\nnetwork: {{mtu: {mtu}}}\n",
            pods.join(", "),
        );
        let first = load(&text);
        let variables: Vec<_> =
            first.values.iter().map(|v| (environment::variable(v.key), v.text())).collect();
        let variables: Vec<_> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        prop_assert_eq!(load_with("", &variables).expect("own values").config, first.config);
    }
}
