//! The small binary that is shipped and measured; all code is in the library.

fn main() -> std::process::ExitCode {
    cpr_vmm::main(std::env::args_os().skip(1))
}
