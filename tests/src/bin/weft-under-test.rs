//! The command under test: tests start it as proxy, control and application, so that they never look for a binary by path.

fn main() -> std::process::ExitCode {
    weft::main()
}
