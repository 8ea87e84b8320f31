//! `berth-monitor`; see the library.

fn main() {
    std::process::exit(berth_monitor::run::main());
}
