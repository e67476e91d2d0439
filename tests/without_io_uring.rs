//! A kernel or container that does not let us use io_uring gets one error that names cause and cure.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Allows every system call but io_uring_setup, which answers `errno`: what a container's seccomp profile
/// does (EPERM), and what a kernel without io_uring answers (ENOSYS).
fn forbid_io_uring(errno: u32) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and its filter live across the calls; prctl only reads them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the echo example says when io_uring_setup answers `errno`.
fn start_without(errno: i32) -> String {
    let this = std::env::current_exe().expect("a process knows its binary");
    let profile = this.ancestors().nth(2).expect("a test lies in target/<profile>/deps");
    let mut command = Command::new(profile.join("examples/echo"));
    command.args(["--port", "0"]);
    // SAFETY: between fork and exec only prctl is called, which is safe there.
    unsafe { command.pre_exec(move || forbid_io_uring(errno as u32)) };
    let output = command.output().expect("the example starts: cargo test builds it");
    assert!(!output.status.success(), "it must not run without io_uring");
    assert!(output.stdout.is_empty(), "it must not say that it listens");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_container_that_forbids_it() {
    let said = start_without(libc::EPERM);
    assert!(said.contains("not permitted") && said.contains("seccomp"), "{said}");
}

#[test]
fn a_kernel_without_it() {
    let said = start_without(libc::ENOSYS);
    assert!(said.contains("no io_uring") && said.contains("Linux 6.1"), "{said}");
}
