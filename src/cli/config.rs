//! `netd config check|example|show`.

use super::{Exit, output};
use crate::config::{EXAMPLE, Loaded, Loader, Origin};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Name and version of what `netd config show -o json` prints.
const SCHEMA: &str = "netd.config/v1";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Tell what is wrong with a configuration, or that nothing is
    Check {
        /// The file [default: the one the agent would read]
        file: Option<PathBuf>,
    },
    /// Print a commented file with every key and its default
    Example,
    /// Print what is in force, and where each value comes from
    Show {
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Format,
    },
}

pub(super) fn run(
    command: Command,
    path: Option<PathBuf>,
    loader: impl FnOnce(Option<PathBuf>) -> Loader,
) -> anyhow::Result<Exit> {
    match command {
        Command::Check { file } => {
            let loader = loader(file.or(path));
            output::text(&summary(&loader, &loader.load()?))?;
        }
        Command::Example => output::text(EXAMPLE)?,
        Command::Show { output: output::Format::Text } => output::text(&table(&loader(path).load()?))?,
        Command::Show { output: output::Format::Json } => output::json(&document(&loader(path).load()?))?,
    }
    Ok(Exit::Ok)
}

fn summary(loader: &Loader, loaded: &Loaded) -> String {
    let file = loaded.values.iter().filter(|v| matches!(v.origin, Origin::File { .. })).count();
    let environment = loaded.values.iter().filter(|v| matches!(v.origin, Origin::Environment(_))).count();
    let default = loaded.values.len() - file - environment;
    let config = &loaded.config;
    let ranges = match config.ipam.pod_cidrs.as_slice() {
        [] => "those of its Node object".to_owned(),
        ranges => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let missing = if loaded.file.is_some() { "" } else { " (not there: defaults)" };
    format!(
        "ok: {}{missing}\n  node    {}\n  pods    {ranges}\n  source  {}\n  keys    {file} from the file, \
         {environment} from the environment, {default} by default\n",
        loader.path().display(),
        config.agent.node,
        config.directory.path.display(),
    )
}

fn table(loaded: &Loaded) -> String {
    let mut rows = vec![["KEY", "VALUE", "FROM"].map(str::to_owned)];
    rows.extend(loaded.values.iter().map(|v| [v.key.to_owned(), v.text(), v.origin.to_string()]));
    output::table(&rows)
}

fn document(loaded: &Loaded) -> Value {
    let key = |v: &crate::config::Value| {
        let origin = match &v.origin {
            Origin::File { path, line, column } => {
                json!({"kind": "file", "path": path.display().to_string(), "line": line, "column": column})
            }
            Origin::Environment(name) => json!({"kind": "environment", "variable": name}),
            Origin::Default => json!({"kind": "default"}),
        };
        json!({"key": v.key, "value": v.value, "origin": origin, "change": v.effect})
    };
    json!({
        "schema": SCHEMA,
        "file": loaded.file.as_ref().map(|path| path.display().to_string()),
        "keys": loaded.values.iter().map(key).collect::<Vec<_>>(),
    })
}
