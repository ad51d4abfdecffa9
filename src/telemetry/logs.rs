//! Logs: one subscriber on standard error, as text or JSON, whose filter can be changed while it runs.
//!
//! Standard output belongs to commands. A reader of standard error that goes away (a restarted journal) is
//! no reason to stop: what cannot be written is lost, silently.

use super::config::{Config, Format};
use std::io;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Why logs are not as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter.
    #[error("`{filter}` is not a log filter")]
    Filter {
        /// What was given.
        filter: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// This process has a subscriber already.
    #[error("logs are set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The subscriber is gone.
    #[error("the log filter cannot be changed")]
    Gone(#[source] reload::Error),
}

/// Changes the filter of running logs.
#[derive(Clone, Debug)]
pub struct Handle(reload::Handle<EnvFilter, Registry>);

impl Handle {
    /// Puts another filter in force for all threads.
    pub fn set_filter(&self, filter: &str) -> Result<(), Error> {
        self.0.reload(parse(filter)?).map_err(Error::Gone)
    }
}

/// Starts logging to standard error.
pub fn init(config: &Config) -> Result<Handle, Error> {
    let (subscriber, handle) = build(config, io::stderr)?;
    subscriber.try_init().map_err(Error::Twice)?;
    Ok(handle)
}

fn build<W>(
    config: &Config,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync + 'static, Handle), Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    // Without `log_internal_errors(false)` a failed write is reported by `eprintln!`, which panics when that
    // is the very stream that failed.
    let lines = fmt::layer().with_writer(writer).with_ansi(false).log_internal_errors(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Text => Box::new(lines),
        Format::Json => Box::new(lines.json().flatten_event(true)),
    };
    Ok((tracing_subscriber::registry().with(filter).with(lines), Handle(handle)))
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::{debug, info};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while held").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().expect("no panic while held"));
            String::from_utf8(bytes).expect("UTF-8")
        }
    }

    fn logs(filter: &str, format: Format) -> (tracing::subscriber::DefaultGuard, Handle, Sink) {
        let sink = Sink::default();
        let writer = sink.clone();
        let config = Config { filter: filter.into(), format };
        let (subscriber, handle) = build(&config, move || writer.clone()).expect("a good filter");
        (tracing::subscriber::set_default(subscriber), handle, sink)
    }

    #[test]
    fn the_filter_can_be_changed_while_running() {
        let (_guard, handle, sink) = logs("info", Format::Text);
        debug!("hidden");
        info!(pod = "a/b", "shown");
        let text = sink.take();
        assert!(text.contains("shown") && text.contains("pod=\"a/b\"") && !text.contains("hidden"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
        handle.set_filter("debug").expect("good");
        debug!("now shown");
        assert!(sink.take().contains("now shown"));
        assert!(matches!(handle.set_filter("netd=loud"), Err(Error::Filter { .. })));
        debug!("still shown");
        assert!(sink.take().contains("still shown"), "a bad filter changes nothing");
    }

    #[test]
    fn a_json_line_is_one_object() {
        let (_guard, _handle, sink) = logs("info", Format::Json);
        info!(pod = "a/b", "two\nlines");
        let text = sink.take();
        assert_eq!(text.lines().count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["message"], &value["pod"]), (&"two\nlines".into(), &"a/b".into()));
    }
}
