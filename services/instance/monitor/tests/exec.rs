//! Execs: streams, terminals, exit codes, reconnecting, backpressure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use berth_monitor::client::Client;
use berth_monitor::error::FaultCode;
use berth_monitor::protocol::*;
use common::*;

fn start(client: &mut Client, exec: StartExec) -> String {
    let id = exec.exec_id.clone();
    client
        .call(Request::StartExec(exec))
        .unwrap_or_else(|e| panic!("{e}"));
    id
}

#[test]
fn exit_codes_signals_and_failures() {
    let guest = guest(|_, _| {});
    assert_eq!(guest.sh("exit 0").1, 0);
    assert_eq!(guest.sh("exit 127").1, 127);
    assert_eq!(guest.sh("kill -9 $$").1, 137);
    let mut client = guest.client();
    for (argv, code) in [
        (&["nosuchthing"][..], FaultCode::CommandNotFound),
        (&["/no/such/thing"], FaultCode::CommandNotFound),
        (&["/bin/plain"], FaultCode::CommandNotExecutable),
        (&["/etc"], FaultCode::CommandNotExecutable),
    ] {
        let fault = client.call(Request::StartExec(exec_of(argv))).unwrap_err();
        assert_eq!(fault.code, code, "{argv:?}: {fault}");
    }
    let mut bad_cwd = exec_of(&["true"]);
    bad_cwd.cwd = Some("/nowhere".into());
    assert_eq!(
        client.call(Request::StartExec(bad_cwd)).unwrap_err().stage,
        "cwd"
    );
    let mut unmapped = exec_of(&["true"]);
    unmapped.uid = 70_000;
    assert_eq!(
        client.call(Request::StartExec(unmapped)).unwrap_err().code,
        FaultCode::Invalid
    );
    let Reply::Execs(left) = client.call(Request::ListExecs).unwrap() else {
        panic!()
    };
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_written_after_the_end_is_not_lost() {
    let guest = guest(|_, _| {});
    // Who holds the pipe writes a moment after the program that was asked for has ended.
    let (output, code) = guest.sh("(sleep 0.3; echo late) & echo early; exit 3");
    assert_eq!((output.as_str(), code), ("early\nlate\n", 3));
}

#[test]
fn init_has_no_terminal_that_could_interrupt_it() {
    let guest = guest(|_, _| {});
    let (output, _) = guest.sh("cut -d' ' -f7 /proc/1/stat");
    assert_eq!(
        output.trim(),
        "0",
        "an interrupt on the console would reboot the guest"
    );
}

#[test]
fn no_signal_is_ignored_or_blocked() {
    let guest = guest(|_, _| {});
    // Without a shell, which has its own mind about signals.
    let (output, _) = guest.exec(exec_of(&[
        "grep",
        "-E",
        "^Sig(Ign|Blk|Cgt)",
        "/proc/self/status",
    ]));
    let masks: Vec<&str> = output
        .lines()
        .filter_map(|l| l.split('\t').nth(1))
        .collect();
    assert_eq!(masks.len(), 3, "{output}");
    assert_eq!(masks[0], "0000000000000000", "blocked: {output}");
    assert_eq!(masks[1], "0000000000000000", "ignored: {output}");
}

#[test]
fn environment_user_and_directory() {
    let guest = guest(|_, _| {});
    let mut exec = exec_of(&[
        "sh",
        "-c",
        "echo $FOO; id -u; id -g; pwd; echo here >/dev/stdout",
    ]);
    exec.env.push(("FOO".into(), "bar baz".into()));
    (exec.uid, exec.gid) = (1000, 1000);
    exec.cwd = Some("/tmp".into());
    assert_eq!(
        guest.exec(exec),
        ("bar baz\n1000\n1000\n/tmp\nhere\n".into(), 0)
    );
}

#[test]
fn stdin_reaches_the_program_once() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let mut exec = exec_of(&["cat"]);
    exec.stdin = true;
    let id = start(&mut client, exec);
    let stdin = |client: &mut Client, offset, eof, bytes: &[u8]| {
        client
            .call_with(
                Request::ExecStdin {
                    exec_id: id.clone(),
                    offset,
                    eof,
                },
                bytes,
            )
            .map(|_| ())
    };
    stdin(&mut client, 0, false, b"hello ").unwrap();
    // A resend after a reconnect, with more.
    let mut second = guest.client();
    stdin(&mut second, 0, false, b"hello wor").unwrap();
    assert_eq!(
        stdin(&mut second, 50, false, b"gap").unwrap_err().code,
        FaultCode::Invalid
    );
    stdin(&mut second, 9, true, b"ld").unwrap();
    let (output, status) = follow(&mut second, &id);
    assert_eq!(
        (output.as_str(), status),
        ("hello world", ExitStatus::Code(0))
    );
}

#[test]
fn without_stdin_it_is_at_its_end() {
    let guest = guest(|_, _| {});
    assert_eq!(guest.exec(exec_of(&["cat"])), (String::new(), 0));
}

#[test]
fn megabytes_pass_in_order() {
    let guest = guest(|_, _| {});
    let (output, code) = guest.sh("yes abcdefg | head -c 8000000");
    assert_eq!(code, 0);
    assert_eq!(output.len(), 8_000_000);
    assert!(output.as_bytes().chunks(8).all(|c| c == b"abcdefg\n"));
}

#[test]
fn megabytes_of_stdin_pass_within_the_window() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let mut exec = exec_of(&["wc", "-c"]);
    exec.stdin = true;
    let id = start(&mut client, exec);
    client
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    let total = 3_000_000u64;
    let (mut sent, mut accepted) = (0u64, 0u64);
    while accepted < total {
        while sent < total && sent - accepted + 50_000 <= EXEC_WINDOW as u64 {
            let bytes = vec![b'x'; 50_000];
            client
                .cast(
                    Request::ExecStdin {
                        exec_id: id.clone(),
                        offset: sent,
                        eof: sent + 50_000 == total,
                    },
                    &bytes,
                )
                .unwrap();
            sent += 50_000;
        }
        match client.event().unwrap().0 {
            Event::ExecStdinAccepted { offset, .. } => accepted = offset,
            other => panic!("{other:?}"),
        }
    }
    let (output, _) = follow(&mut client, &id);
    assert_eq!(output.trim(), "3000000");
}

#[test]
fn a_program_nobody_reads_waits_and_loses_nothing() {
    let guest = guest(|_, _| {});
    let mut first = guest.client();
    let id = start(
        &mut first,
        exec_of(&[
            "sh",
            "-c",
            "yes 0123456 | head -c 2000000; echo done >/tmp/done",
        ]),
    );
    first
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    let mut got = 0;
    while got < 100_000 {
        if let (Event::ExecOutput { .. }, payload) = first.event().unwrap() {
            got += payload.len();
        }
    }
    // Gone without an acknowledgement: the monitor keeps everything from 0.
    drop(first);
    assert_ne!(guest.sh("ls /tmp/done").1, 0, "the program must wait");
    let mut second = guest.client();
    eventually("a full window", || {
        let Reply::Exec(state) = second
            .call(Request::GetExec {
                exec_id: id.clone(),
            })
            .unwrap()
        else {
            panic!()
        };
        assert!(state.status.is_none());
        state.stdout == (0, EXEC_WINDOW as u64) && !state.attached
    });
    assert_ne!(guest.sh("ls /tmp/done").1, 0, "the program still waits");
    let (output, status) = follow(&mut second, &id);
    assert_eq!((output.len(), status), (2_000_000, ExitStatus::Code(0)));
    let gone = second
        .call(Request::AttachExec {
            exec_id: id,
            stdout_offset: 5,
            stderr_offset: 0,
        })
        .unwrap_err();
    assert_eq!(gone.code, FaultCode::OffsetGone);
}

#[test]
fn an_ended_exec_is_kept_until_deleted() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let id = start(
        &mut client,
        exec_of(&["sh", "-c", "echo out; echo err >&2; exit 4"]),
    );
    eventually("the end", || {
        let Reply::Exec(state) = client
            .call(Request::GetExec {
                exec_id: id.clone(),
            })
            .unwrap()
        else {
            panic!()
        };
        state.status == Some(ExitStatus::Code(4))
    });
    let again = client
        .call(Request::StartExec(StartExec {
            exec_id: id.clone(),
            ..exec_of(&["true"])
        }))
        .unwrap();
    assert!(matches!(again, Reply::ExecStarted { already: true, .. }));
    let (mut output, status) = follow(&mut guest.client(), &id);
    output = output.replace("err\n", "");
    assert_eq!((output.as_str(), status), ("out\n", ExitStatus::Code(4)));
    client
        .call(Request::DeleteExec {
            exec_id: id.clone(),
        })
        .unwrap();
    assert_eq!(
        client
            .call(Request::GetExec { exec_id: id })
            .unwrap_err()
            .code,
        FaultCode::NotFound
    );
}

#[test]
fn a_terminal_has_a_size_an_owner_and_signals() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let mut exec = exec_of(&[
        "sh",
        "-c",
        "stty size; tty; stat -c %u $(tty); trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done",
    ]);
    exec.pty = Some(PtySize {
        rows: 30,
        cols: 100,
    });
    (exec.uid, exec.gid) = (1000, 1000);
    let id = start(&mut client, exec);
    client
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    let mut output = String::new();
    let mut resized = false;
    let status = loop {
        match client.event().unwrap() {
            (Event::ExecOutput { stream, .. }, payload) => {
                assert_eq!(stream, Stream::Stdout);
                output.push_str(&String::from_utf8_lossy(&payload));
                if output.contains("ready") && !resized {
                    resized = true;
                    client
                        .cast(
                            Request::ResizeExec {
                                exec_id: id.clone(),
                                rows: 40,
                                cols: 120,
                            },
                            &[],
                        )
                        .unwrap();
                }
            }
            (Event::ExecExited { status, .. }, _) => break status,
            _ => {}
        }
    };
    assert_eq!(status, ExitStatus::Code(5));
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    assert_eq!(lines[0], "30 100");
    assert!(lines[1].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(lines[2], "1000");
    assert_eq!(lines.last(), Some(&"40 120"));
}

#[test]
fn keys_on_a_terminal_interrupt() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let mut exec = exec_of(&["sh", "-c", "echo ready; sleep 100"]);
    exec.pty = Some(PtySize { rows: 24, cols: 80 });
    let id = start(&mut client, exec);
    client
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    loop {
        match client.event().unwrap() {
            (Event::ExecOutput { .. }, payload)
                if String::from_utf8_lossy(&payload).contains("ready") =>
            {
                client
                    .cast(
                        Request::ExecStdin {
                            exec_id: id.clone(),
                            offset: 0,
                            eof: false,
                        },
                        b"\x03",
                    )
                    .unwrap();
            }
            (Event::ExecExited { status, .. }, _) => {
                assert_eq!(status.shell_code(), 130);
                return;
            }
            _ => {}
        }
    }
}

#[test]
fn a_process_left_behind_does_not_hold_the_exec() {
    let guest = guest(|_, _| {});
    let begun = std::time::Instant::now();
    assert_eq!(guest.sh("sleep 30 & echo started"), ("started\n".into(), 0));
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn signals_and_kills() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let id = start(
        &mut client,
        exec_of(&[
            "sh",
            "-c",
            "trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done",
        ]),
    );
    client
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    while !matches!(client.event().unwrap().0, Event::ExecOutput { .. }) {}
    client
        .call(Request::SignalExec {
            exec_id: id.clone(),
            signal: libc::SIGUSR1,
        })
        .unwrap();
    assert_eq!(follow(&mut client, &id).1, ExitStatus::Code(6));
    let id = start(&mut client, exec_of(&["sleep", "100"]));
    client
        .call(Request::KillExec {
            exec_id: id.clone(),
        })
        .unwrap();
    assert_eq!(follow(&mut client, &id).1, ExitStatus::Signal(9));
}

#[test]
fn the_latest_client_has_the_exec() {
    let guest = guest(|_, _| {});
    let (mut first, mut second) = (guest.client(), guest.client());
    let id = start(
        &mut first,
        exec_of(&["sh", "-c", "echo one; sleep 0.2; echo two"]),
    );
    first
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    assert_eq!(follow(&mut second, &id).0, "one\ntwo\n");
    loop {
        match first.event().unwrap().0 {
            Event::ExecDetached { exec_id } if exec_id == id => break,
            _ => {}
        }
    }
}

#[test]
fn execs_of_a_guest_that_stops_end_with_it() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let id = start(
        &mut client,
        exec_of(&["sh", "-c", "echo last words; sleep 100"]),
    );
    client
        .call(Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    while !matches!(client.event().unwrap().0, Event::ExecOutput { .. }) {}
    guest.stop();
    let ended = loop {
        if let Event::ExecExited { status, .. } = client.event().unwrap().0 {
            break status;
        }
    };
    assert_eq!(ended, ExitStatus::Signal(9));
}
