//! `netd-demo`: shows the main job on real packets. `netd-demo reap DIR` is the lab's reaper.

use anyhow::{Result, bail};
use std::ffi::OsStr;
use std::path::Path;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(word), Some(dir)) if word == OsStr::new("reap") => netd_integration::lab::reap(Path::new(&dir)),
        _ => bail!("usage: netd-demo"),
    }
}
