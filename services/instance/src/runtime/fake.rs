//! Guests without a kernel: the monitor's protocol answered from memory, and every request written down.
//! For tests of what is above.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use berth_monitor::error::{Fault, FaultCode};
use berth_monitor::frame::{self, Decoder};
use berth_monitor::protocol::{
    Ended, Event, ExecState, ExitReason, ExitStatus, FromMonitor, HelloReply, MemoryState,
    PROTOCOL_VERSION, Reply, Request, StartExec, State, Status, StopHow, Stream, ToMonitor,
};
use berth_monitor::spec::{PortSpec, Spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};

use super::meter::Meter;
use super::{Numbers, Place, Runtime, Started, TemplateJob};
use crate::Error;
use crate::host::rootfs::GuestRoot;
use crate::host::templates::Templates;

/// One guest that runs in the test's imagination.
#[derive(Debug)]
struct Guest {
    spec: Spec,
    run: u64,
    frozen_by: Vec<String>,
    execs: HashMap<String, ExecState>,
    outputs: HashMap<String, Vec<u8>>,
    events: broadcast::Sender<Event>,
    /// Hears nothing: asks and stops are not answered.
    deaf: bool,
    ignores_shutdown: bool,
}

#[derive(Debug, Default)]
struct Inner {
    guests: BTreeMap<String, Guest>,
    ended: HashMap<String, Ended>,
    run_dirs: Vec<String>,
    /// Requests as they came, with the uid of their guest.
    log: Vec<(String, String)>,
    /// The next start fails like this.
    fail_start: Option<Fault>,
    /// Requests whose name is in here are refused.
    refuse: Vec<String>,
    rendered: Vec<(String, Vec<String>)>,
}

/// See the module. Clones share their guests.
#[derive(Debug, Clone)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
    dir: PathBuf,
}

impl Fake {
    /// Logs and root directories are below `dir`.
    pub fn new(dir: PathBuf) -> Fake {
        Fake {
            inner: Arc::default(),
            dir,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the requests that a guest got.
    pub fn requests(&self, uid: &str) -> Vec<String> {
        self.lock()
            .log
            .iter()
            .filter(|(u, _)| u == uid)
            .map(|(_, r)| r.clone())
            .collect()
    }

    /// Guests that were asked to stop, in the order of the requests.
    pub fn stops(&self) -> Vec<String> {
        let inner = self.lock();
        let stops = inner.log.iter().filter(|(_, request)| request == "Stop");
        stops.map(|(uid, _)| uid.clone()).collect()
    }

    /// The spec that a guest runs with.
    pub fn spec(&self, uid: &str) -> Option<Spec> {
        self.lock().guests.get(uid).map(|g| g.spec.clone())
    }

    pub fn fail_next_start(&self, message: &str) {
        self.lock().fail_start = Some(Fault::new("rootfs", FaultCode::Kernel, message));
    }

    /// From now on requests of that name are refused (empty: none are).
    pub fn refuse(&self, name: &str) {
        let mut inner = self.lock();
        inner.refuse.clear();
        inner
            .refuse
            .extend((!name.is_empty()).then(|| name.to_owned()));
    }

    pub fn ignore_shutdown(&self, uid: &str) {
        if let Some(guest) = self.lock().guests.get_mut(uid) {
            guest.ignores_shutdown = true;
        }
    }

    /// It goes on running and answers nothing.
    pub fn make_deaf(&self, uid: &str, deaf: bool) {
        if let Some(guest) = self.lock().guests.get_mut(uid) {
            guest.deaf = deaf;
        }
    }

    /// The guest ends by itself.
    pub fn end(&self, uid: &str, reason: ExitReason) {
        end(&mut self.lock(), uid, reason);
    }

    /// The monitor is killed: nothing is told.
    pub fn kill_monitor(&self, uid: &str) {
        self.lock().guests.remove(uid);
    }

    /// The guest reboots itself.
    pub fn reboot(&self, uid: &str) {
        let mut inner = self.lock();
        let Some(guest) = inner.guests.get_mut(uid) else {
            return;
        };
        guest.run += 1;
        let event = Event::Rebooted {
            run: guest.run,
            init_pid: 2000 + guest.run as i32,
            generation: guest.spec.generation,
        };
        // Nobody may be listening.
        let _ = guest.events.send(event);
    }

    /// Templates rendered so far: instance name and triggers.
    pub fn rendered(&self) -> Vec<(String, Vec<String>)> {
        self.lock().rendered.clone()
    }
}

fn end(inner: &mut Inner, uid: &str, reason: ExitReason) {
    let Some(guest) = inner.guests.remove(uid) else {
        return;
    };
    let ended = Ended {
        uid: uid.to_owned(),
        generation: guest.spec.generation,
        run: guest.run,
        reason,
        status: Some(ExitStatus::Code(0)),
        started_at_ms: 0,
        ended_at_ms: 1,
        cpu_ns: None,
        fault: None,
    };
    inner.ended.insert(uid.to_owned(), ended.clone());
    let _ = guest.events.send(Event::Stopped(ended));
}

fn state(guest: &Guest) -> State {
    State {
        status: if guest.frozen_by.is_empty() {
            Status::Running
        } else {
            Status::Frozen
        },
        generation: guest.spec.generation,
        run: guest.run,
        init_pid: 2000 + guest.run as i32,
        monitor_pid: 1000,
        started_at_ms: 0,
        uptime_ms: 1,
        cpu_ns: Some(5),
        memory: MemoryState {
            usage: Some(4096),
            limit: guest.spec.limits.memory_bytes,
            ..Default::default()
        },
        pids: Some(3),
        pids_limit: guest.spec.limits.pids,
        links: Vec::new(),
        frozen_by: guest.frozen_by.clone(),
        console_attached: false,
    }
}

/// `SomeRequest { .. }` without what is in it.
fn request_name(request: &Request) -> String {
    let text = format!("{request:?}");
    text.split([' ', '(', '{'])
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn no_guest() -> Fault {
    Fault::new("fake", FaultCode::NotFound, "no such guest")
}

/// One client of one guest.
struct Client {
    fake: Fake,
    uid: String,
    out: mpsc::UnboundedSender<(FromMonitor, Vec<u8>)>,
}

impl Client {
    fn event(&self, event: Event, payload: Vec<u8>) {
        let _ = self.out.send((FromMonitor::Event(event), payload));
    }

    /// `None`: no answer at all.
    fn answer(&self, request: Request, payload: &[u8]) -> Option<Result<Reply, Fault>> {
        let mut inner = self.fake.lock();
        let name = request_name(&request);
        inner.log.push((self.uid.clone(), name.clone()));
        if inner.refuse.contains(&name) {
            return Some(Err(Fault::new(
                "fake",
                FaultCode::Kernel,
                format!("{name} was refused"),
            )));
        }
        let Some(guest) = inner.guests.get_mut(&self.uid) else {
            return Some(Err(no_guest()));
        };
        if guest.deaf {
            return None;
        }
        Some(match request {
            Request::Hello { .. } => Ok(Reply::Hello(HelloReply {
                version: PROTOCOL_VERSION,
                build: "fake".into(),
                uid: self.uid.clone(),
                project: guest.spec.project.clone(),
                name: guest.spec.name.clone(),
                generation: guest.spec.generation,
                monitor_pid: 1000,
            })),
            Request::GetState { .. } => Ok(Reply::State(Box::new(state(guest)))),
            Request::Subscribe => {
                let mut events = guest.events.subscribe();
                let out = self.out.clone();
                tokio::spawn(async move {
                    while let Ok(event) = events.recv().await {
                        let _ = out.send((FromMonitor::Event(event), Vec::new()));
                    }
                });
                Ok(Reply::State(Box::new(state(guest))))
            }
            Request::Stop { how } => return self.stop(&mut inner, how),
            Request::Freeze { holder, .. } => {
                guest.frozen_by.push(holder);
                Ok(Reply::Done)
            }
            Request::Thaw { holder } => {
                guest.frozen_by.retain(|h| *h != holder);
                Ok(Reply::Done)
            }
            Request::UpdateLimits { limits } => {
                guest.spec.limits = limits;
                Ok(Reply::Done)
            }
            Request::ReplaceSpec { spec } => {
                guest.spec = *spec;
                Ok(Reply::Done)
            }
            Request::AddNic { .. }
            | Request::RemoveNic { .. }
            | Request::AddMount { .. }
            | Request::RemoveMount { .. }
            | Request::AddDevice { .. }
            | Request::RemoveDevice { .. } => Ok(Reply::Done),
            Request::StartExec(exec) => start_exec(guest, exec),
            Request::AttachExec {
                exec_id,
                stdout_offset,
                ..
            } => {
                return Some(self.attach(guest, &exec_id, stdout_offset));
            }
            Request::ExecStdin {
                exec_id,
                offset,
                eof,
            } => {
                self.stdin(guest, &exec_id, offset, payload, eof);
                Ok(Reply::Done)
            }
            Request::GetExec { exec_id } => guest
                .execs
                .get(&exec_id)
                .map(|e| Reply::Exec(e.clone()))
                .ok_or_else(no_guest),
            Request::DeleteExec { exec_id } => match guest.execs.remove(&exec_id) {
                Some(_) => Ok(Reply::Done),
                None => Err(no_guest()),
            },
            Request::AckExec { .. } | Request::ResizeExec { .. } | Request::SignalExec { .. } => {
                Ok(Reply::Done)
            }
            Request::GetConsoleLog => Ok(Reply::ConsoleLog),
            Request::ClearConsoleLog | Request::AttachConsole { .. } => Ok(Reply::Done),
            _ => Err(Fault::new("fake", FaultCode::Unsupported, name)),
        })
    }

    fn stop(&self, inner: &mut Inner, how: StopHow) -> Option<Result<Reply, Fault>> {
        let ignores = inner
            .guests
            .get(&self.uid)
            .is_some_and(|g| g.ignores_shutdown);
        match how {
            StopHow::Graceful { timeout_ms: 0 } if ignores => None,
            StopHow::Graceful { .. } if ignores => Some(Err(Fault::new(
                "stop",
                FaultCode::Timeout,
                "the guest did not stop in time",
            ))),
            StopHow::Graceful { .. } => {
                end(inner, &self.uid, ExitReason::Halt);
                Some(Ok(Reply::Done))
            }
            StopHow::Kill => {
                end(inner, &self.uid, ExitReason::Killed);
                Some(Ok(Reply::Done))
            }
        }
    }

    fn attach(&self, guest: &Guest, id: &str, from: u64) -> Result<Reply, Fault> {
        let exec = guest.execs.get(id).ok_or_else(no_guest)?;
        let output = guest.outputs.get(id).cloned().unwrap_or_default();
        let rest = output.get(from as usize..).unwrap_or_default().to_vec();
        let exec_id = id.to_owned();
        if !rest.is_empty() {
            let event = Event::ExecOutput {
                exec_id: exec_id.clone(),
                stream: Stream::Stdout,
                offset: from,
            };
            self.event(event, rest);
        }
        if let Some(status) = exec.status {
            let stdout_end = output.len() as u64;
            self.event(
                Event::ExecExited {
                    exec_id: exec_id.clone(),
                    status,
                    stdout_end,
                    stderr_end: 0,
                },
                vec![],
            );
        }
        let accepted = Event::ExecStdinAccepted {
            exec_id: exec_id.clone(),
            offset: exec.stdin_offset,
        };
        self.event(accepted, vec![]);
        Ok(Reply::ExecAttached {
            exec_id,
            pid: exec.pid,
            stdin_offset: exec.stdin_offset,
            stdout_offset: from,
            stderr_offset: 0,
        })
    }

    /// `cat`: what comes in goes out.
    fn stdin(&self, guest: &mut Guest, id: &str, offset: u64, payload: &[u8], eof: bool) {
        let Some(exec) = guest.execs.get_mut(id) else {
            return;
        };
        let known = exec.stdin_offset.saturating_sub(offset) as usize;
        let fresh = payload.get(known..).unwrap_or_default().to_vec();
        let output = guest.outputs.entry(id.to_owned()).or_default();
        let at = output.len() as u64;
        output.extend(&fresh);
        exec.stdin_offset += fresh.len() as u64;
        let exec_id = id.to_owned();
        let accepted = Event::ExecStdinAccepted {
            exec_id: exec_id.clone(),
            offset: exec.stdin_offset,
        };
        self.event(accepted, vec![]);
        if !fresh.is_empty() {
            let event = Event::ExecOutput {
                exec_id: exec_id.clone(),
                stream: Stream::Stdout,
                offset: at,
            };
            self.event(event, fresh);
        }
        if eof {
            exec.status = Some(ExitStatus::Code(0));
            let stdout_end = output.len() as u64;
            let status = ExitStatus::Code(0);
            self.event(
                Event::ExecExited {
                    exec_id,
                    status,
                    stdout_end,
                    stderr_end: 0,
                },
                vec![],
            );
        }
    }
}

fn start_exec(guest: &mut Guest, exec: StartExec) -> Result<Reply, Fault> {
    let id = exec.exec_id;
    if let Some(there) = guest.execs.get(&id) {
        return Ok(Reply::ExecStarted {
            exec_id: id,
            pid: there.pid,
            already: true,
        });
    }
    let (status, output) = match exec.argv[0].as_str() {
        "true" => (Some(ExitStatus::Code(0)), Vec::new()),
        "false" => (Some(ExitStatus::Code(1)), Vec::new()),
        "echo" => (
            Some(ExitStatus::Code(0)),
            format!("{}\n", exec.argv[1..].join(" ")).into_bytes(),
        ),
        "cat" => (None, Vec::new()),
        "missing" => return Err(Fault::new("exec", FaultCode::CommandNotFound, "not found")),
        _ => {
            return Err(Fault::new(
                "exec",
                FaultCode::CommandNotExecutable,
                "not executable",
            ));
        }
    };
    let pid = 3000 + guest.execs.len() as i32;
    let end = output.len() as u64;
    guest.execs.insert(
        id.clone(),
        ExecState {
            exec_id: id.clone(),
            pid,
            status,
            started_at_ms: 0,
            attached: false,
            stdout: (0, end),
            stderr: (0, 0),
            stdin_offset: 0,
        },
    );
    guest.outputs.insert(id.clone(), output);
    Ok(Reply::ExecStarted {
        exec_id: id,
        pid,
        already: false,
    })
}

async fn serve(fake: Fake, uid: String, mut stream: UnixStream) {
    let (out, mut frames) = mpsc::unbounded_channel::<(FromMonitor, Vec<u8>)>();
    let client = Client {
        fake: fake.clone(),
        uid: uid.clone(),
        out,
    };
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 64 << 10];
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
    let mut told_end = false;
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => {
                let Ok(read @ 1..) = read else { return };
                decoder.feed(&buffer[..read]);
                while let Ok(Some((ToMonitor { id, body }, payload))) = decoder.next::<ToMonitor>() {
                    let Some(result) = client.answer(body, &payload) else { continue };
                    if id != 0 {
                        let _ = client.out.send((FromMonitor::Reply { id, result }, Vec::new()));
                    }
                }
            }
            frame = frames.recv() => {
                let Some((header, payload)) = frame else { return };
                told_end |= matches!(header, FromMonitor::Event(Event::Stopped(_)));
                let Ok(bytes) = frame::encode(&header, &payload) else { return };
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // A monitor that is gone closes its connections, after it told its end to who listens.
            _ = tick.tick() => {
                let gone = !fake.lock().guests.contains_key(&uid);
                if gone && (told_end || frames.is_empty()) {
                    return;
                }
            }
        }
    }
}

#[async_trait::async_trait]
impl Runtime for Fake {
    async fn directories(&self, uid: &str) -> io::Result<(String, String)> {
        let mut inner = self.lock();
        if !inner.run_dirs.iter().any(|u| u == uid) {
            inner.run_dirs.push(uid.to_owned());
        }
        let log = self.log_dir(uid);
        std::fs::create_dir_all(&log)?;
        Ok((
            format!("/run/fake/{uid}"),
            log.to_string_lossy().into_owned(),
        ))
    }

    async fn start(&self, spec: Spec) -> Result<Started, Fault> {
        spec.validate()?;
        let mut inner = self.lock();
        if let Some(fault) = inner.fail_start.take() {
            return Err(fault);
        }
        inner.ended.remove(&spec.uid);
        let guest = Guest {
            run: 1,
            frozen_by: Vec::new(),
            execs: HashMap::new(),
            outputs: HashMap::new(),
            events: broadcast::Sender::new(64),
            deaf: false,
            ignores_shutdown: false,
            spec,
        };
        inner.guests.insert(guest.spec.uid.clone(), guest);
        Ok(Started {
            init_pid: 2001,
            monitor_pid: 1000,
        })
    }

    fn open_meter(&self, _uid: &str) -> Result<Meter, Fault> {
        let why = "there is no kernel to read from";
        Err(Fault::new("fake", FaultCode::Unsupported, why))
    }

    fn measure(
        &self,
        _uid: &str,
        _meter: &mut Meter,
        _ports: &[PortSpec],
    ) -> Result<Numbers, Fault> {
        Err(Fault::new(
            "fake",
            FaultCode::Unsupported,
            "there is no kernel to read from",
        ))
    }

    async fn connect(&self, uid: &str) -> io::Result<UnixStream> {
        if !self.lock().guests.contains_key(uid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        tokio::spawn(serve(self.clone(), uid.to_owned(), theirs));
        Ok(ours)
    }

    async fn ended(&self, uid: &str) -> Option<Ended> {
        self.lock().ended.get(uid).cloned()
    }

    async fn known(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().run_dirs.clone())
    }

    async fn clean(&self, uid: &str, _all: bool) -> io::Result<()> {
        let mut inner = self.lock();
        inner.run_dirs.retain(|u| u != uid);
        inner.ended.remove(uid);
        Ok(())
    }

    async fn render_templates(&self, job: TemplateJob) -> Result<Arc<Templates>, Error> {
        let triggers = job.triggers.iter().map(|t| t.name().to_owned()).collect();
        self.lock().rendered.push((job.guest.name, triggers));
        Ok(job.known.unwrap_or_default())
    }

    async fn root(&self, place: Place) -> Result<GuestRoot, Error> {
        use rustix::fs::{Mode, OFlags};
        let dir = self.dir.join("root");
        std::fs::create_dir_all(&dir).map_err(Error::internal)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(Error::internal)?;
        let ids = match place {
            Place::Running { ids, .. } | Place::Stopped { ids, .. } => ids,
        };
        Ok(GuestRoot { dir, ids })
    }

    async fn remove_logs(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.log_dir(uid)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn log_dir(&self, uid: &str) -> PathBuf {
        self.dir.join("logs").join(uid)
    }
}
