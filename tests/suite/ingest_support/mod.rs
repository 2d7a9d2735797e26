//! The real router on a real socket, over an appender that keeps what it is given in memory.
//!
//! The double models the two duplicate rules that answers depend on, event ids and [`NewEvent::once`], and nothing
//! else. What Redis does with an append is tested where the appender is.

#![allow(dead_code)]

pub mod live;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use system_bus::config::{Config, Sources, TraceTrust};
use system_bus::ingest::admission::{Admission, Append, Route, Routes};
use system_bus::ingest::event_api::{EventApi, EventApiSettings, PublicIds};
use system_bus::ingest::gateway::{Beside, Echoes, Gateway, GatewaySettings};
use system_bus::ingest::providers::Senders;
use system_bus::server::{self, Parts, health::Readiness};
use system_bus::service::senders::{self, Leased};
use system_bus::streams::append::{self, Appended, DuplicateBy, Durability, NewEvent};
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::family::Family;
use system_bus::streams::json::JsonObject;
use system_bus::streams::lane::Lane;
use system_bus::streams::priority::Priority;
use tokio_util::sync::CancellationToken;

/// See the module.
#[derive(Default)]
pub struct Memory {
    events: Mutex<Vec<NewEvent>>,
    known: Mutex<HashMap<String, Appended>>,
    next: AtomicU64,
    is_down: AtomicBool,
    closed_by_us: Mutex<Vec<String>>,
}

impl Memory {
    pub fn take_down(&self) {
        self.is_down.store(true, Ordering::SeqCst);
    }

    pub fn bring_back(&self) {
        self.is_down.store(false, Ordering::SeqCst);
    }

    /// As if the system itself had closed this task a moment ago.
    pub fn close_task(&self, task: &str) {
        self.closed_by_us.lock().unwrap().push(task.to_owned());
    }

    pub fn events(&self) -> Vec<NewEvent> {
        self.events.lock().unwrap().clone()
    }

    fn append_one(&self, event: NewEvent) -> Appended {
        let mut known = self.known.lock().unwrap();
        let id_key = event.id.as_ref().map(|id| format!("id {} {id}", event.name));
        let once_key = event.once.as_ref().map(|once| format!("once {}", once.key));
        for (key, by) in [(&id_key, DuplicateBy::Id), (&once_key, DuplicateBy::Window)] {
            if let Some(first) = key.as_ref().and_then(|key| known.get(key)) {
                return Appended { duplicate: Some(by), ..first.clone() };
            }
        }
        let seq = self.next.fetch_add(1, Ordering::SeqCst);
        let appended = Appended {
            event_id: event.id.clone().unwrap_or_else(|| format!("made-{seq}")),
            lane: Lane::new(event.name.clone(), event.priority),
            entry_id: Some(EntryId { ms: 1, seq }),
            duplicate: None,
            durability: Durability::Memory,
        };
        for key in [id_key, once_key].into_iter().flatten() {
            known.insert(key, appended.clone());
        }
        self.events.lock().unwrap().push(event);
        appended
    }
}

impl Append for Memory {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, append::Error>> {
        Box::pin(async move {
            if self.is_down.load(Ordering::SeqCst) {
                return Err(append::Error::Full { used: 2, limit: 1 });
            }
            Ok(events.into_iter().map(|event| self.append_one(event)).collect())
        })
    }
}

impl Echoes for Memory {
    fn is_ours<'a>(&'a self, task: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move { Ok(self.closed_by_us.lock().unwrap().iter().any(|closed| closed == task)) })
    }
}

impl PublicIds for Memory {
    fn public_id(&self, _: Lane, entry: EntryId) -> BoxFuture<'_, Option<String>> {
        let event = self.events().get(usize::try_from(entry.seq).unwrap()).cloned();
        let meta = event.as_ref().and_then(|event| event.meta.as_ref()).map(JsonObject::to_value);
        let beside = meta.and_then(|meta| meta["ulid"].as_str().map(str::to_owned));
        Box::pin(async move { beside.or_else(|| event?.id) })
    }
}

/// Everything is routed at P2 with no window.
struct AnyRoute;

impl Routes for AnyRoute {
    fn route(&self, _family: &Family, _source: &str, _data: &JsonObject) -> Route {
        Route { priority: Priority::P2, is_routed: true, ..Route::default() }
    }
}

/// The senders that a configuration of these variables has.
pub fn senders(variables: &[(&str, &str)]) -> Senders {
    let environment: BTreeMap<String, String> =
        variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let home = tempfile::tempdir().unwrap();
    let sources = Sources { environment, home: home.path().to_path_buf(), ..Sources::default() };
    senders::senders(&Config::load(&sources).unwrap(), &Leased::default()).unwrap()
}

/// The published examples of GitHub's deliveries: all kinds of events, each with its payloads.
pub fn octokit_examples() -> serde_json::Value {
    let installed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/conformance/js/node_modules/@octokit/webhooks-examples/api.github.com/index.json"
    );
    let path = std::env::var("OCTOKIT_EXAMPLES").unwrap_or_else(|_| installed.to_owned());
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; `make deps` installs it"));
    serde_json::from_slice(&text).unwrap()
}

/// A served router; stops when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub memory: Arc<Memory>,
    cancel: CancellationToken,
}

impl Server {
    pub async fn start(gateway: GatewaySettings, senders: Senders, event_api: EventApiSettings) -> Self {
        let memory = Arc::new(Memory::default());
        let admission = Admission::new(memory.clone(), Arc::new(AnyRoute));
        let cancel = CancellationToken::new();
        let router = server::router(Parts {
            internal: None,
            worker: None,
            metrics: None,
            tracing: server::trace::Tracing { trust: TraceTrust::Internal, trusted_proxies: Vec::new(), spans: None },
            gateway: Gateway::new(
                gateway,
                senders,
                admission.clone(),
                Beside { echoes: Some(memory.clone()), ..Beside::default() },
            ),
            event_api: EventApi::new(event_api, admission, memory.clone()),
            facade: None,
            readiness: Readiness::new(cancel.clone()),
        });
        let listener = server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server::serve(listener, router, cancel.clone(), Duration::from_secs(1)));
        Self { address, memory, cancel }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends `bytes` as they are and returns the status code of the answer.
    pub async fn raw(&self, bytes: &[u8]) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        // The server may answer, and close, before it has read everything.
        let write = async { writer.write_all(bytes).await.ok() };
        let mut answer = [0u8; 12];
        let (_, read) = tokio::join!(write, reader.read_exact(&mut answer));
        read.unwrap();
        std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A client without proxies and redirects.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}
