use super::*;
use proptest::prelude::*;
use std::fmt::Write;

const FILE: &str = "a.yaml";

fn yaml(text: &str) -> Parsed {
    parse(Path::new(FILE), text.as_bytes(), Format::Yaml)
}

fn json(text: &str) -> Parsed {
    parse(Path::new(FILE), text.as_bytes(), Format::Json)
}

fn problems(parsed: &Parsed) -> Vec<String> {
    parsed.problems.iter().map(ToString::to_string).collect()
}

fn keys(parsed: &Parsed) -> Vec<String> {
    let content = parsed.content.as_ref().unwrap_or_else(|| panic!("{:#?}", problems(parsed)));
    content.iter().map(|entry| format!("{}:{} {}", entry.place.line, entry.place.column, entry.key)).collect()
}

#[track_caller]
fn breaks(text: &str, expected: &[&str]) {
    let parsed = yaml(text);
    assert_eq!(problems(&parsed), expected);
    assert!(parsed.content.is_none());
}

#[test]
fn documents_lists_and_comments() {
    let parsed = yaml(
        "# a head\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\n# nothing here\n---\n\
         spec:\n  clusterIP: 10.0.0.1\n  ports: [{port: 80}]\nmetadata:\n  name: web\n  namespace: shop\nkind: Service\napiVersion: v1\n...\n\
         %YAML 1.2\n---\nkind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: shop}\n\
         - {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, endpoints: []}\n\
         --- {apiVersion: v1, kind: Pod, metadata: {name: p}}\n",
    );
    assert_eq!(
        keys(&parsed),
        [
            "3:1 Node n1",
            "9:1 Service shop/web",
            "23:3 Namespace shop",
            "26:3 EndpointSlice default/s",
            "27:5 Pod default/p"
        ]
    );
    assert_eq!(problems(&parsed), Vec::<String>::new());
}

#[test]
fn what_a_real_api_server_lists_is_read_whole() {
    for (kind, count, text) in [
        ("nodes", 2, include_str!("../../../tests/fixtures/kubernetes-1.36/nodes.json")),
        ("namespaces", 6, include_str!("../../../tests/fixtures/kubernetes-1.36/namespaces.json")),
        ("pods", 2, include_str!("../../../tests/fixtures/kubernetes-1.36/pods.json")),
        ("services", 6, include_str!("../../../tests/fixtures/kubernetes-1.36/services.json")),
        ("endpointslices", 4, include_str!("../../../tests/fixtures/kubernetes-1.36/endpointslices.json")),
        ("networkpolicies", 1, include_str!("../../../tests/fixtures/kubernetes-1.36/networkpolicies.json")),
    ] {
        for parsed in [json(text), yaml(text)] {
            assert_eq!(keys(&parsed).len(), count, "{kind}");
            assert_eq!(problems(&parsed), Vec::<String>::new(), "{kind}");
        }
    }
}

#[test]
fn json_texts_may_follow_each_other() {
    let parsed = json(
        "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"a\"}} {\"apiVersion\":\"v1\",\"kind\":\"Node\",\n\
         \t\"metadata\":{\"name\":\"b\\u002dc\"}}\n\n{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{}}",
    );
    assert_eq!(problems(&parsed), ["a.yaml:4:45: Node: metadata.name: missing"]);
    let parsed = json("{\"apiVersion\": \"v1\",\n  \"kind\": }");
    assert_eq!(problems(&parsed), ["a.yaml:2:11: expected value"]);
}

#[test]
fn a_place_in_the_first_line_of_a_later_json_text() {
    let parsed = json(
        "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"é\"}}{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"B\"}}",
    );
    let places: Vec<_> = parsed.problems.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, [(Some(1), Some(53)), (Some(1), Some(110))]);
}

#[test]
fn semantic_errors_have_the_place_of_their_field() {
    breaks(
        "kind: Node\napiVersion: v1\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\n\
         spec:\n  clusterIP: None\n  ports:\n  - name: a\n    port: 80\n  - name: b\n    port: 70000\n",
        &["a.yaml:16:11: Service shop/web: spec.ports[1].port: 70000 is not a port (1 to 65535)"],
    );
    // A missing field: the place of the thing that lacks it.
    breaks(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.0.0.1\n  ports:\n  - name: a\n",
        &["a.yaml:7:5: Service web: spec.ports[0].port: 0 is not a port (1 to 65535)"],
    );
    breaks(
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {clusterIP: None}\n- metadata: {name: b}\n  spec:\n    clusterIP: 10.0.0.\n",
        &["a.yaml:8:16: Service b: spec.clusterIP: \"10.0.0.\" is not an IP address"],
    );
}

#[test]
fn each_broken_object_is_named() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: A}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: 7}\n";
    let parsed = yaml(text);
    let lines: Vec<_> = parsed.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(3), Some(7)]);
    assert_eq!(parsed.problems[1].message, "metadata.name: value requires quoting");
}

#[test]
fn errors_of_type_have_place_and_path() {
    breaks(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports: 5\n",
        &["a.yaml:5:10: Service web: spec.ports: expected sequence start"],
    );
    breaks(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {a: b}\n  selector: {a: c}\n",
        &["a.yaml:6:3: Service web: duplicate mapping key `selector` is not allowed here"],
    );
    breaks(
        "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n  spec: {hostNetwork: perhaps}\n",
        &["a.yaml:6:23: Pod b: spec.hostNetwork: invalid boolean (true or false expected)"],
    );
}

#[test]
fn errors_of_syntax_have_line_and_column() {
    breaks("apiVersion: v1\nkind: Node\nmetadata: {name: a\n", &["a.yaml:3:11: unclosed bracket '{'"]);
    breaks(
        "apiVersion: v1\nmetadata:\n  name: a\n\tb: c\n",
        &["a.yaml:3:9: while scanning a plain scalar, found a tab"],
    );
    breaks("- a\n", &["a.yaml:1:1: expected a Kubernetes object (a mapping)"]);
    breaks("metadata: {}\n", &["a.yaml:1:1: kind: missing: not a Kubernetes object"]);
    breaks("kind: Node\n", &["a.yaml:1:1: apiVersion: missing: not a Kubernetes object"]);
    let parsed = parse(Path::new(FILE), b"kind: Node\n# \xc3\xa9\xff\n", Format::Yaml);
    assert_eq!(problems(&parsed), ["a.yaml:2:4: not UTF-8 text"]);
}

#[test]
fn other_kinds_are_ignored_with_a_word_each() {
    let parsed = yaml(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {replicas: many}\n---\n\
         apiVersion: v2\nkind: Node\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n",
    );
    assert_eq!(keys(&parsed), ["13:3 Node n"]);
    assert_eq!(
        problems(&parsed),
        [
            "a.yaml:1:1: Deployment shop/web: ignored: netd does not read Deployment of apps/v1",
            "a.yaml:6:1: Node: ignored: netd does not read Node of v2",
            "a.yaml:12:3: Secret s: ignored: netd does not read Secret of v1",
        ]
    );
}

#[test]
fn unknown_fields_are_told_and_a_policy_with_one_is_refused() {
    let parsed = yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: None\n  selctor: {app: web}\n",
    );
    assert_eq!(keys(&parsed).len(), 1);
    assert_eq!(problems(&parsed), ["a.yaml:6:3: Service web: spec.selctor: unknown field, ignored"]);
    breaks(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec:\n  podSelector: {}\n  ingres:\n  - {}\n",
        &["a.yaml:6:3: NetworkPolicy web: spec.ingres: unknown field"],
    );
}

#[test]
fn a_service_that_nobody_gives_an_address_is_told() {
    let parsed = yaml("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports: [{port: 80}]\n");
    assert_eq!(keys(&parsed).len(), 1);
    assert_eq!(parsed.problems[0].severity, Severity::Warning);
    assert!(parsed.problems[0].message.starts_with("spec.clusterIP: missing"));
}

#[test]
fn an_object_twice_in_a_file_is_an_error() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\n";
    breaks(&node.repeat(2), &["a.yaml:5:1: Node a: is there twice; the first is in line 1"]);
}

#[test]
fn nulls_are_as_good_as_nothing() {
    let parsed = yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: null, creationTimestamp: null}\nspec: {clusterIP: None, selector: ~, ports: }\nstatus: {}\n\
         ---\nnull\n---\napiVersion: v1\nkind: NodeList\nitems: null\n",
    );
    assert_eq!(keys(&parsed).len(), 1);
    assert_eq!(problems(&parsed), Vec::<String>::new());
}

#[test]
fn anchors_work_and_do_not_explode() {
    let parsed = yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &l {app: web}}\nspec: {clusterIP: None, selector: *l}\n",
    );
    assert_eq!(keys(&parsed).len(), 1);

    let mut bomb = String::from(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n",
    );
    for level in 1..12 {
        let before = format!("*x{}", level - 1);
        writeln!(bomb, "x{level}: &x{level} [{}]", vec![before; 10].join(", ")).unwrap();
    }
    let parsed = yaml(&bomb);
    assert!(parsed.content.is_none());
    assert!(parsed.problems[0].message.contains("too large or too complex"), "{:?}", problems(&parsed));
}

#[test]
fn depth_has_a_bound() {
    for open in ["[", "{a: "] {
        let parsed = yaml(&format!("apiVersion: v1\nkind: Node\nspec: {}", open.repeat(100_000)));
        assert!(parsed.content.is_none());
    }
    let parsed = json(&format!("{{\"kind\": {}", "[".repeat(100_000)));
    assert!(parsed.content.is_none());
}

/// Pieces that make up documents, whole and broken.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("apiVersion: v1\n".to_owned()),
        Just("kind: Service\n".to_owned()),
        Just("kind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n".to_owned()),
        Just("metadata: {name: a, namespace: &n b}\n".to_owned()),
        Just("spec:\n  ports:\n  - port: 80\n    targetPort: *n\n".to_owned()),
        Just("? [a]\n: b\n".to_owned()),
        Just("<<: {a: b}\n".to_owned()),
        Just("---\n".to_owned()),
        Just("...\n".to_owned()),
        Just("%TAG ! tag:x:\n".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"a\"}}\n".to_owned()),
        "[ \\t\\n:{}\\[\\],&*!|>'\"%@`#a-c0-9é-]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn no_text_panics_and_every_error_has_its_line(fragments in proptest::collection::vec(fragment(), 0..12)) {
        let text = fragments.concat();
        let lines = u32::try_from(text.lines().count()).unwrap() + 1;
        for parsed in [yaml(&text), json(&text)] {
            prop_assert_eq!(parsed.content.is_none(), parsed.problems.iter().any(|p| p.severity == Severity::Error));
            for problem in &parsed.problems {
                prop_assert!(problem.line.is_some_and(|line| line >= 1 && line <= lines), "{}\n{:?}", problem, text);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Yaml, Format::Json] {
            let parsed = parse(Path::new(FILE), &bytes, format);
            prop_assert_eq!(parsed.content.is_none(), parsed.problems.iter().any(|p| p.severity == Severity::Error));
        }
    }
}
