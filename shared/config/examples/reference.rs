//! Writes `docs/configuration.md` to standard output.

fn main() {
    print!("{}", berth_config::reference_page());
}
