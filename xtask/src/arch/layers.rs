//! The map from module to layer, and which layer may import which. The table in `src/lib.rs` says the same
//! to people.

/// The lowest layer: the kernel ABI, the model, every module's configuration.
pub(super) const BASE: u8 = 0;
/// Pure planners and protocol cores: they import the base and their own module only.
pub(super) const PURE: u8 = 2;

/// Modules and their layers. The longest match wins, so that one folder can span layers; whatever is below a
/// listed module is of its layer.
const LAYERS: [(&str, u8); 41] = [
    ("answer", BASE),
    ("model", BASE),
    ("slots", BASE),
    ("config", 1),
    ("datapath", 1),
    ("directory", 1),
    ("k8s", 1),
    ("net", 1),
    ("telemetry", 1),
    ("net::plan", PURE),
    ("net::route", BASE),
    ("policy", PURE),
    ("service", PURE),
    ("ipam", PURE),
    ("ipam::controller", 3),
    ("ipam::eni", 3),
    ("ipam::ledger", 3),
    ("cni", 3),
    ("cni::types", 1),
    ("bfd", 3),
    ("bfd::machine", PURE),
    ("bfd::wire", 1),
    ("bgp", 3),
    ("bgp::decision", PURE),
    ("bgp::fsm", PURE),
    ("bgp::policy", PURE),
    ("bgp::rib", PURE),
    ("bgp::wire", 1),
    ("bmp", 3),
    ("bmp::wire", 1),
    ("dns", 3),
    ("dns::cache", PURE),
    ("dns::wire", 1),
    ("dns::zone", PURE),
    ("extdns", 3),
    ("reconcile", 3),
    ("store", 3),
    ("agent", 4),
    ("cli", 5),
    ("doctor", 5),
    ("main", 6),
];

/// The layer of a path into the crate, or nothing if its module is not in the table.
pub(super) fn of(path: &[String]) -> Option<u8> {
    // `cli::config` is the command of that name.
    if let [first, second, ..] = path
        && second == "config"
        && first != "cli"
    {
        return Some(BASE);
    }
    let depth = |name: &str| name.split("::").count();
    LAYERS
        .iter()
        .filter(|(name, _)| path.len() >= depth(name) && name.split("::").zip(path).all(|(a, b)| a == b))
        .max_by_key(|(name, _)| depth(name))
        .map(|(_, layer)| *layer)
}

/// Why a module of this path may not import that one, if it may not.
pub(super) fn forbidden(from: &[String], to: &[String]) -> Option<String> {
    let (Some(own), Some(other)) = (of(from), of(to)) else { return None };
    let same_module = from.first() == to.first();
    if other > own {
        Some(format!("layer {own} must not import layer {other}"))
    } else if own == PURE && other != BASE && !(same_module && other == PURE) {
        Some(format!("layer {PURE} is pure: it imports layer {BASE} only, not layer {other}"))
    } else {
        None
    }
}
