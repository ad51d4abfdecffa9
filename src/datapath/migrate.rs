//! Moving the datapath from one set of maps to another under traffic: from schema 1, or to other sizes.
//!
//! Nothing is changed in place. A second set is made, in `v<schema>-next`: maps that stay as they are are
//! pinned there too, the others are made and filled. Programs for the time in between
//! (`netd_bpf::flow::beside`) then take over one interface after the other, while those of the first set
//! still run on the rest; both see all flows, so that the order does not matter. When the last interface has
//! them, the flows that came meanwhile are brought over and the new set takes the place of the old one.
//! [`super::open`] then loads the programs that know of no other set, and removes the old one.
//!
//! The old set stays whole until then. An agent that dies anywhere in between leaves a node that forwards as
//! before; the next one begins again, with the flows that the new set has already. What fails is undone.

mod flows;
mod rows;
pub(super) mod sizes;

use super::config::Config;
use super::object::{self, Beside, Programs};
use super::pin::Pins;
use super::shape::{OF_FLOWS, UNSIZED, shapes};
use super::{Error, attach, batch};
use netd_bpf::event::path;
use netd_bpf::pod::Pod;
use netd_bpf::schema1;
use sizes::Rows;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

/// A move, and how far it has come.
#[derive(Debug)]
pub(super) struct Move {
    /// With the sizes that the new set gets.
    config: Config,
    beside: Beside,
    from: Pins,
    to: Pins,
    current: Pins,
    previous: Pins,
    /// Maps that the new set does not share with the old one.
    new: BTreeSet<&'static str>,
    /// The new tables of flows have nothing in them, and no program writes to them.
    untouched: bool,
    programs: Option<Programs>,
    /// Interfaces that have the new programs.
    swapped: usize,
}

type Step = (&'static str, fn(&mut Move) -> Result<(), Error>);

/// What a move does, in this order. A crash between any two, or within one, costs no flow.
pub(super) const STEPS: [Step; 6] = [
    ("lay out the new maps", Move::lay_out),
    ("load the programs over them", Move::load),
    ("fill them", Move::fill),
    ("put the programs in place", Move::swap),
    ("bring over what came meanwhile", Move::catch_up),
    ("put the new maps in force", Move::commit),
];

impl Move {
    /// From schema 1.
    pub(super) fn from_schema1(config: &Config) -> Self {
        let from = Pins::schema1(&config.bpffs);
        Self::new(config, Beside::Schema1(from.clone()), from)
    }

    /// To the sizes of `config`.
    pub(super) fn to_sizes(config: &Config) -> Self {
        let from = Pins::current(&config.bpffs);
        Self::new(config, Beside::SameSchema(from.clone()), from)
    }

    fn new(config: &Config, beside: Beside, from: Pins) -> Self {
        Self {
            config: config.clone(),
            beside,
            from,
            to: Pins::next(&config.bpffs),
            current: Pins::current(&config.bpffs),
            previous: Pins::previous(&config.bpffs),
            new: BTreeSet::new(),
            untouched: true,
            programs: None,
            swapped: 0,
        }
    }

    /// The programs of the time in between, once they are loaded.
    #[cfg(all(test, not(netd_bpf_stub)))]
    pub(super) fn programs(&self) -> &Programs {
        self.programs.as_ref().expect("loaded")
    }

    /// Takes all steps, or none.
    pub(super) fn run(mut self) -> Result<(), Error> {
        for (step, take) in STEPS {
            let start = Instant::now();
            if let Err(source) = take(&mut self) {
                self.undo();
                let from = self.from.root().to_owned();
                return Err(Error::Move { from, step, source: Box::new(source) });
            }
            tracing::debug!(target: "netd::datapath", took = ?start.elapsed(), "{step}");
        }
        Ok(())
    }

    /// Pins what stays, and makes room for what is new. Tables of flows that an earlier try left are kept:
    /// they may hold flows that the old set cannot express.
    fn lay_out(&mut self) -> Result<(), Error> {
        self.to.create()?;
        for shape in shapes(&self.config) {
            if !shape.fits(&self.from) {
                self.new.insert(shape.name);
            }
        }
        if OF_FLOWS.iter().any(|name| self.new.contains(name)) {
            self.new.extend(OF_FLOWS);
        }
        for shape in shapes(&self.config) {
            let left = OF_FLOWS.contains(&shape.name) && shape.fits(&self.to);
            if !self.new.contains(shape.name) {
                self.share(shape.name)?;
            } else if left {
                self.untouched = false;
            } else {
                super::pin::unpin(&self.to.map(shape.name))?;
            }
        }
        for name in UNSIZED {
            self.share(name)?;
        }
        self.lay_out_paths()
    }

    /// The counters of paths are a new map where there are more of them than the old set knows.
    fn lay_out_paths(&mut self) -> Result<(), Error> {
        let Some(old) = self.from.open(rows::PATHS)? else { return Ok(()) };
        if old.info().map_err(Error::map(rows::PATHS))?.max_entries() < path::COUNT {
            super::pin::unpin(&self.to.map(rows::PATHS))?;
            self.new.insert(rows::PATHS);
        }
        Ok(())
    }

    /// Pins a map of the old set in the new one, if there is one.
    fn share(&self, name: &'static str) -> Result<(), Error> {
        match self.from.open(name)? {
            Some(map) => self.to.pin(name, &map),
            None => super::pin::unpin(&self.to.map(name)),
        }
    }

    /// Makes the maps that are not there yet, loads the programs.
    fn load(&mut self) -> Result<(), Error> {
        // Where the tables of flows stay the same there is nothing to tell each other.
        let beside = if self.moves_flows() { self.beside.clone() } else { Beside::Alone };
        self.programs = Some(object::load(&self.config, &self.to, &beside)?.programs);
        Ok(())
    }

    fn moves_flows(&self) -> bool {
        self.new.contains("ESTABLISHED")
    }

    /// Fills the new maps. Nobody but programs writes to any map meanwhile: there is one agent, and it is
    /// here.
    fn fill(&mut self) -> Result<(), Error> {
        match &self.beside {
            Beside::Schema1(_) => rows::import(&self.from, &self.to, &self.new)?,
            Beside::SameSchema(_) | Beside::Alone => rows::copy(&self.from, &self.to, &self.new)?,
        }
        rows::copy_paths(&self.from, &self.to, &self.new)?;
        self.bring_flows()
    }

    fn bring_flows(&self) -> Result<(), Error> {
        if !self.moves_flows() {
            return Ok(());
        }
        let limits = self.config.limits();
        let rows = match &self.beside {
            Beside::Schema1(_) => Rows::Schema1,
            Beside::SameSchema(_) | Beside::Alone => Rows::Current,
        };
        let mut carrier = flows::Carrier::new(&limits, (&self.from, rows), &self.to, self.untouched)?;
        match rows {
            Rows::Schema1 => carrier.bring_schema1()?,
            Rows::Current => carrier.bring()?,
        }
        flows::count_shares(&self.to)
    }

    /// Puts the programs on every interface that has one of ours.
    fn swap(&mut self) -> Result<(), Error> {
        let Some(programs) = &mut self.programs else { return Ok(()) };
        self.untouched = false;
        attach::swap(programs, &self.from, Some(&self.to), &mut self.swapped)
    }

    /// Only what nobody's packets have brought over since.
    fn catch_up(&mut self) -> Result<(), Error> {
        self.bring_flows()?;
        rows::copy_affinity(&self.from, &self.to, &self.new)
    }

    /// From here on it is the old set that is left over.
    fn commit(&mut self) -> Result<(), Error> {
        if self.current.exist() {
            self.previous.remove()?;
            self.current.rename(&self.previous)?;
        }
        self.to.rename(&self.current)
    }

    /// Gives the interfaces back to the old programs, which know all flows. What cannot be undone is no worse
    /// for it: the next agent begins again.
    fn undo(&mut self) {
        if !self.to.exist() {
            return;
        }
        if self.swapped > 0 {
            let back = Programs::pinned(&self.from)
                .map(|mut old| attach::swap(&mut old, &self.from, None, &mut self.swapped));
            if !matches!(back, Some(Ok(()))) {
                tracing::error!(
                    target: "netd::datapath",
                    "not all interfaces have their former programs again; those they have forward as well"
                );
                return;
            }
        }
        if let Err(error) = self.to.remove() {
            tracing::error!(target: "netd::datapath", "{}", crate::telemetry::chain(&error));
        }
    }
}

/// Looks at every row of a pinned map, whose shape must have been seen to; of one that is not there at none.
fn each<K: aya::Pod + Default, V: aya::Pod + Default>(
    pins: &Pins,
    name: &'static str,
    mut look: impl FnMut(K, V) -> Result<(), Error>,
) -> Result<(), Error> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(());
    }
    let mut result = Ok(());
    batch::visit(name, &path, None, |keys: &[K], rows: &[V]| {
        result = keys.iter().zip(rows).try_for_each(|(key, row)| look(*key, *row));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}

/// The same with a table of pods, whose rows become rows of this schema.
fn each_pod<K: aya::Pod + Default>(
    (pins, rows): (&Pins, Rows),
    name: &'static str,
    mut look: impl FnMut(K, Pod) -> Result<(), Error>,
) -> Result<(), Error> {
    match rows {
        Rows::Schema1 => each(pins, name, |key, row: schema1::Pod| look(key, row.import())),
        Rows::Current => each(pins, name, look),
    }
}
