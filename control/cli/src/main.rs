//! The `weft` binary: all of it is in the library, so that tests can play its parts too.

fn main() -> std::process::ExitCode {
    weft::main()
}
