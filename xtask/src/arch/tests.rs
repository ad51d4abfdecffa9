//! The architecture check against code made to break it.

use super::lexer::{Token, tokens};
use super::{Source, check, layers, sources};
use crate::cargo;

/// What `check` says about these files, as `path:line: …` up to the first colon of the reason.
fn said(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<Source> = files
        .iter()
        .map(|(path, text)| Source { path: (*path).to_owned(), text: format!("//! Test.\n{text}") })
        .collect();
    check(&files).into_iter().map(|found| format!("{}:{}: {}", found.path, found.line, found.what)).collect()
}

fn one(path: &str, text: &str) -> Vec<String> {
    said(&[(path, text)])
}

#[test]
fn an_upward_import_is_named_with_its_line() {
    assert_eq!(
        one("src/net/links.rs", "use std::io;\nuse crate::agent::Agent;\n"),
        ["src/net/links.rs:3: net::links imports agent::Agent: layer 1 must not import layer 4"]
    );
}

#[test]
fn downward_and_level_imports_are_fine() {
    let text = "use crate::{model::{self, Pod}, net::config::Config};\nuse crate::datapath::Datapath;\nuse netd_bpf::pod;";
    assert_eq!(one("src/net/links.rs", text), [""; 0]);
    assert_eq!(one("src/agent.rs", "use crate::{cni, store::Store, reconcile};"), [""; 0]);
}

#[test]
fn every_form_of_a_path_is_seen() {
    for text in [
        "use crate::cli::Cli;",
        "use crate::{model, cli::{Cli}};",
        "use crate::{model, cli::{self as c}};",
        "pub(crate) use crate::cli::*;",
        "use super::super::cli;",
        "fn f() { crate::cli::run(); }",
        "fn f(_: &crate::cli::Cli) {}",
        "fn f() { super::super::cli::run() }",
        "impl crate::cli::Show for X {}",
        "fn f() { vec![crate::cli::A]; }",
        "use super::super as root; fn f() { root::cli::run() }",
        "fn f() { netd::cli::run() }",
        "mod inner { use super::super::super::cli::Cli; }",
        "mod inner { fn f() {} } use crate::cli::Cli;",
    ] {
        assert_eq!(one("src/net/links.rs", text).len(), 1, "{text}");
    }
}

#[test]
fn what_is_taken_from_an_imported_module_counts() {
    let with = |text| {
        said(&[
            ("src/config.rs", text),
            ("src/agent.rs", ""),
            ("src/agent/config.rs", ""),
            ("src/cli.rs", ""),
        ])
    };
    assert_eq!(with("use crate::{agent, cli as c};\nfn f(_: agent::config::Config) {}"), [""; 0]);
    assert_eq!(
        with("use crate::agent;\nfn f(_: agent::Agent) {}"),
        ["src/config.rs:3: config imports agent::Agent: layer 1 must not import layer 4"]
    );
    assert_eq!(with("use crate::agent;\nuse agent::config as c;\nfn f(_: c::Config) {}"), [""; 0]);
    assert_eq!(with("use crate::agent;\nuse agent::Agent;").len(), 1);
    assert_eq!(with("pub use crate::agent;").len(), 1);
    assert_eq!(with("pub(crate) use crate::agent;").len(), 1);
    assert_eq!(with("use crate::agent::*;").len(), 1);
}

#[test]
fn a_name_means_what_its_own_module_imported() {
    let text = "use crate::model as m;\nmod inner { use crate::cli as m; }\nfn f() { m::x() }";
    assert_eq!(said(&[("src/net/links.rs", text), ("src/cli.rs", ""), ("src/model.rs", "")]), [""; 0]);
}

#[test]
fn what_is_no_code_is_no_import() {
    for text in [
        "// use crate::cli::Cli;",
        "/// See [`crate::cli::Cli`].\nfn f() {}",
        "/* /* use crate::cli; */ crate::cli::run() */",
        "const A: &str = \"crate::cli::run\\\" crate::cli\";",
        "const A: &str = r#\"crate::cli::run\" crate::cli\"#;",
        "const A: (char, &[u8]) = ('\"', b\"crate::cli::a\");",
        "fn f<'a>(a: &'a str) -> impl Sized + use<'a> { a }",
        "pub(crate) fn cli() { other::cli::run() }",
        "mod cli { pub fn run() {} } fn f() { cli::run() }",
    ] {
        assert_eq!(one("src/net/links.rs", text), [""; 0], "{text}");
    }
}

#[test]
fn tests_may_import_what_they_like() {
    let inline = "#[cfg(test)]\nmod tests { use crate::cli::Cli; fn f() { crate::agent::run(); } }";
    assert_eq!(one("src/net/links.rs", inline), [""; 0]);
    assert_eq!(
        said(&[
            ("src/net.rs", "#[cfg(test)]\nmod testing;\nmod links;"),
            ("src/net/testing.rs", "use crate::cli::Cli;"),
            ("src/net/testing/deep.rs", "use crate::cli::Cli;"),
            ("src/net/links.rs", "#[cfg(test)]\nuse crate::cli::Cli;\nuse crate::agent::Agent;"),
        ]),
        ["src/net/links.rs:4: net::links imports agent::Agent: layer 1 must not import layer 4"]
    );
}

#[test]
fn code_after_a_test_module_is_seen_again() {
    let text = "#[cfg(test)]\nmod tests { fn f() { if true { } } }\nuse crate::cli::Cli;";
    assert_eq!(one("src/net/links.rs", text).len(), 1);
}

#[test]
fn planners_import_the_base_and_themselves_only() {
    assert_eq!(one("src/service/plan.rs", "use crate::model::Service; use super::slots::Slots;"), [""; 0]);
    for text in ["use crate::policy::Rules;", "use crate::net::Netlink;", "use crate::ipam::Pool;"] {
        assert_eq!(one("src/service/plan.rs", text).len(), 1, "{text}");
    }
    assert_eq!(one("src/net/plan.rs", "use super::routes::Route;").len(), 1);
    assert_eq!(one("src/net/plan.rs", "use super::config::Config;"), [""; 0]);
}

#[test]
fn a_facade_must_not_lift_what_is_above_it() {
    assert_eq!(
        one("src/net.rs", "mod plan;\npub use plan::Plan;"),
        ["src/net.rs:3: net imports plan::Plan".replace("imports ", "imports net::")
            + ": layer 1 must not import layer 2"]
    );
}

#[test]
fn a_folder_that_spans_layers_is_mapped_by_file() {
    let layer = |path: &str| layers::of(&path.split("::").map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(layer("ipam::pool::Pool"), Some(2));
    assert_eq!(layer("ipam::ledger::Ledger"), Some(3));
    assert_eq!(layer("ipam::config::Config"), Some(0));
    assert_eq!(layer("cni::types"), Some(1));
    assert_eq!(layer("cni::server"), Some(3));
    assert_eq!(layer("cli::config"), Some(5));
    assert_eq!(layer("netx"), None);
}

#[test]
fn an_unknown_module_is_asked_about() {
    assert_eq!(
        one("src/misc.rs", ""),
        ["src/misc.rs:1: module misc has no layer; add it to xtask/src/arch/layers.rs"]
    );
}

#[test]
fn unsafe_outside_its_places_is_found_also_in_tests() {
    let text =
        "#[cfg(test)]\nmod tests { fn f() { unsafe { g() } } }\n// unsafe\nconst A: &str = \"unsafe\";";
    let found = one("src/store.rs", text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("src/store.rs:3: "), "{found:?}");
    assert_eq!(one("src/datapath/maps.rs", text), [""; 0]);
}

#[test]
fn house_rules_are_checked() {
    let long = "//! Long.\n".to_owned() + &"\n".repeat(700);
    let files =
        [("src/store.rs", "use std::io;\n"), ("src/net/utils.rs", "//! A.\n"), ("xtask/src/a.rs", &long)];
    let files = files.map(|(path, text)| Source { path: path.to_owned(), text: text.to_owned() });
    let found: Vec<String> = check(&files).into_iter().map(|found| found.path).collect();
    assert_eq!(found, ["src/net/utils.rs", "src/store.rs", "xtask/src/a.rs"]);
}

#[test]
fn literals_do_not_derail_the_lexer() {
    let text =
        "let a = ['\\'', '\"', '\\u{1f}', 'é'];\nlet b: &'static str = r##\"a\"# \"##; let c = b'\\''; z";
    let last = tokens(text).pop();
    assert_eq!(last, Some((Token::Word("z".to_owned()), 2)));
}

#[test]
fn the_real_workspace_is_read_whole() {
    let found = sources(&cargo::root()).expect("the workspace's own sources");
    for path in ["build.rs", "src/lib.rs", "xtask/src/arch/tests.rs", "bpf/src/lib.rs"] {
        assert!(found.iter().any(|source| source.path == path), "{path}");
    }
}
