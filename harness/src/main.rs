//! The harness as one file to copy to a host: it carries the VMM and the guests.

fn main() -> std::process::ExitCode {
    cpr_vmm::main(std::env::args_os().skip(2))
}
