//! Puts the plugin and its configuration where container runtimes look.
//!
//! Both atomically (temporary file in the same folder, fsync, rename), and the configuration last: a runtime
//! takes the network for ready as soon as it sees it. What is there already and is the same is not touched.
//! Removal goes the other way round.

use super::config::Config;
use super::types::{NETWORK, Version};
use serde_json::{Value, json};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why the plugin is not, or only half, in place.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What the plugin must know to find the agent, or to work without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The folder of the ledger.
    pub state_dir: PathBuf,
    /// The folder of the pinned maps.
    pub bpffs: PathBuf,
}

/// What an installation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The plugin was written.
    pub plugin: bool,
    /// The configuration was written.
    pub conflist: bool,
}

/// Installs the running binary.
pub fn install(config: &Config, settings: &Settings) -> Result<Installed, Error> {
    install_from(Path::new("/proc/self/exe"), config, settings)
}

/// Removes what [`install`] made, and a half-written file of it. Missing files are well.
pub fn remove(config: &Config) -> Result<(), Error> {
    for path in [config.conf_dir.join(&config.conf_name), config.bin_dir.join(NETWORK)] {
        for path in [temporary(&path), path] {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error { action: "remove", path, source }),
            }
        }
    }
    Ok(())
}

/// The configuration list. It says 1.0.0, which every runtime in use takes, and offers the others to those
/// that choose (SPEC.md, "Version considerations"). `portmap` is chained only where it is installed, and
/// `portmap` are then the versions that it speaks: a runtime that does not find a plugin of the list, or gives
/// one a version that it does not know, fails every pod.
#[must_use]
pub fn conflist(settings: &Settings, portmap: Option<&[Version]>) -> String {
    let mut plugins = vec![json!({
        "type": NETWORK,
        "socket": settings.socket,
        "stateDir": settings.state_dir,
        "bpffs": settings.bpffs,
        "capabilities": {"ips": true},
    })];
    let mut versions = Version::ALL.to_vec();
    if let Some(portmap) = portmap {
        versions.retain(|version| portmap.contains(version));
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    let common = versions.iter().filter(|version| **version <= Version::V1_0_0).max();
    let list: Value = json!({
        "cniVersion": common.unwrap_or(&Version::V1_0_0),
        "cniVersions": versions,
        "name": NETWORK,
        "plugins": plugins,
    });
    format!("{list:#}\n")
}

fn install_from(binary: &Path, config: &Config, settings: &Settings) -> Result<Installed, Error> {
    let plugin = put(&config.bin_dir.join(NETWORK), 0o755, || File::open(binary))?;
    let portmap = spoken_by(&config.bin_dir.join("portmap"));
    let text = conflist(settings, portmap.as_deref());
    let conflist = put(&config.conf_dir.join(&config.conf_name), 0o644, || Ok(text.as_bytes()))?;
    Ok(Installed { plugin, conflist })
}

/// The versions that another plugin and netd both speak; none if it is not there or cannot be chained.
fn spoken_by(plugin: &Path) -> Option<Vec<Version>> {
    if !plugin.is_file() {
        return None;
    }
    let answer = ask_version(plugin).and_then(|answer| {
        let answer: Value = serde_json::from_slice(&answer)?;
        let known = |version: &&Version| {
            let listed = answer.get("supportedVersions").and_then(Value::as_array);
            listed.is_some_and(|listed| listed.iter().any(|one| one.as_str() == Some(version.as_str())))
        };
        Ok(Version::ALL.iter().filter(known).copied().collect::<Vec<_>>())
    });
    match answer {
        Ok(versions) if versions.iter().any(|version| *version <= Version::V1_0_0) => Some(versions),
        Ok(_) => {
            tracing::warn!(plugin = %plugin.display(), "not chained: it speaks no version that netd does");
            None
        }
        Err(error) => {
            tracing::warn!(plugin = %plugin.display(), %error, "not chained: it does not tell its versions");
            None
        }
    }
}

fn ask_version(plugin: &Path) -> io::Result<Vec<u8>> {
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(br#"{"cniVersion":"0.3.1"}"#)
        // It may answer without reading.
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(error);
    }
    Ok(child.wait_with_output()?.stdout)
}

/// Writes `path` unless it has this content and mode. The content is asked for twice: to compare, to copy.
fn put<R: Read>(path: &Path, mode: u32, content: impl Fn() -> io::Result<R>) -> Result<bool, Error> {
    let failed = |action| move |source| Error { action, path: path.to_owned(), source };
    let same = content().and_then(|new| is_same(path, mode, new)).map_err(failed("compare"))?;
    if same {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(dir).map_err(failed("create the folder of"))?;
    let temporary = temporary(path);
    let written = content()
        .and_then(|new| write_synced(&temporary, mode, new))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(dir)?.sync_all());
    if let Err(source) = written {
        if let Err(error) = fs::remove_file(&temporary) {
            tracing::debug!(path = %temporary.display(), %error, "a failed write leaves its file");
        }
        return Err(failed("write")(source));
    }
    Ok(true)
}

/// Hidden and without a suffix that runtimes read (`.conf`, `.conflist`, `.json`).
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn is_same(path: &Path, mode: u32, mut new: impl Read) -> io::Result<bool> {
    let mut old = match File::open(path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !old.metadata()?.is_file() || old.metadata()?.permissions().mode() & 0o7777 != mode {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = read_full(&mut old, &mut one)?;
        if count != read_full(&mut new, &mut other)? || one.get(..count) != other.get(..count) {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn write_synced(path: &Path, mode: u32, mut content: impl Read) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    io::copy(&mut content, &mut file)?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    fn config(dir: &Path) -> Config {
        Config {
            install: true,
            bin_dir: dir.join("bin"),
            conf_dir: dir.join("net.d"),
            conf_name: "10-netd.conflist".to_owned(),
            sync_wait: Duration::from_secs(1),
        }
    }

    fn settings() -> Settings {
        Settings {
            socket: "/run/netd/netd.sock".into(),
            state_dir: "/var/lib/netd".into(),
            bpffs: "/sys/fs/bpf/netd".into(),
        }
    }

    #[test]
    fn the_list_is_what_runtimes_take() {
        insta::assert_snapshot!(conflist(&settings(), Some(&Version::ALL)), @r#"
        {
          "cniVersion": "1.0.0",
          "cniVersions": [
            "0.3.1",
            "0.4.0",
            "1.0.0",
            "1.1.0"
          ],
          "name": "netd",
          "plugins": [
            {
              "bpffs": "/sys/fs/bpf/netd",
              "capabilities": {
                "ips": true
              },
              "socket": "/run/netd/netd.sock",
              "stateDir": "/var/lib/netd",
              "type": "netd"
            },
            {
              "capabilities": {
                "portMappings": true
              },
              "type": "portmap"
            }
          ]
        }
        "#);
        assert!(!conflist(&settings(), None).contains("portmap"));
    }

    #[test]
    fn the_list_offers_only_what_portmap_speaks_too() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("portmap");
        let list = |answer: &str| -> Option<Value> {
            let script = format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n");
            fs::write(&plugin, script).unwrap();
            fs::set_permissions(&plugin, Permissions::from_mode(0o755)).unwrap();
            let versions = spoken_by(&plugin)?;
            Some(serde_json::from_str(&conflist(&settings(), Some(&versions))).unwrap())
        };
        let answer = |versions: &[&str]| json!({"supportedVersions": versions}).to_string();
        let debian_12 = list(&answer(&["0.1.0", "0.3.1", "0.4.0", "1.0.0"])).unwrap();
        assert_eq!(debian_12["cniVersion"], "1.0.0");
        assert_eq!(debian_12["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0"]));
        assert_eq!(list(&answer(&["0.3.1", "0.4.0"])).unwrap()["cniVersion"], "0.4.0");
        for useless in [&answer(&["0.1.0", "2.0.0"]), "no JSON"] {
            assert_eq!(list(useless), None, "{useless}");
        }
        assert_eq!(spoken_by(&dir.path().join("nothing")), None);
    }

    #[test]
    fn installing_twice_changes_nothing_and_removing_takes_all() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let both = |plugin, conflist| Installed { plugin, conflist };
        assert_eq!(install(&config, &settings()).unwrap(), both(true, true));
        let plugin = config.bin_dir.join("netd");
        let list = config.conf_dir.join("10-netd.conflist");
        assert_eq!(fs::read(&plugin).unwrap(), fs::read("/proc/self/exe").unwrap());
        assert_eq!(fs::metadata(&plugin).unwrap().mode() & 0o7777, 0o755);
        let before = (fs::metadata(&plugin).unwrap().ino(), fs::metadata(&list).unwrap().ino());
        assert_eq!(install(&config, &settings()).unwrap(), both(false, false));
        assert_eq!(before, (fs::metadata(&plugin).unwrap().ino(), fs::metadata(&list).unwrap().ino()));

        let answer = "#!/bin/sh\ncat > /dev/null\necho '{\"supportedVersions\": [\"1.0.0\"]}'\n";
        fs::write(config.bin_dir.join("portmap"), answer).unwrap();
        fs::set_permissions(config.bin_dir.join("portmap"), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(install(&config, &settings()).unwrap(), both(false, true));
        assert!(fs::read_to_string(&list).unwrap().contains("portmap"));
        fs::set_permissions(&plugin, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(install(&config, &settings()).unwrap(), both(true, false));

        fs::write(temporary(&plugin), "half").unwrap();
        remove(&config).unwrap();
        remove(&config).unwrap();
        let left: Vec<_> =
            fs::read_dir(&config.bin_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["portmap"]);
        assert_eq!(fs::read_dir(&config.conf_dir).unwrap().count(), 0);
    }

    #[test]
    fn a_binary_in_use_is_replaced_and_the_list_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let missing = install_from(&dir.path().join("nothing"), &config, &settings()).unwrap_err();
        assert!(missing.to_string().ends_with("bin/netd"), "{missing}");
        assert!(!config.conf_dir.exists(), "no plugin, no list");

        install_from(Path::new("/bin/sleep"), &config, &settings()).unwrap();
        let mut running = std::process::Command::new(config.bin_dir.join("netd")).arg("60").spawn().unwrap();
        let replaced = install_from(Path::new("/bin/true"), &config, &settings());
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(replaced.unwrap().plugin);
    }
}
