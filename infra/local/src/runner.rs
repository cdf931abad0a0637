//! Starts and stops everything.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    response::Response,
    serve::ListenerExt,
};
use karta_shared::{
    App,
    app::Witness,
    clock::Clock,
    config::{self, Config, Deadlines},
    domain::{Entropy, InternalGuard, Reach, Slug},
    store::table::Tables,
};
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    bootstrap::{self, Founded},
    emulator::Emulator,
    gateway::Gateway,
    registry,
    secrets::{Given, LocalSecrets},
    template::{TEMPLATE, Template},
    workers,
};

/// How long a stop waits for requests under way.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// How to run.
pub struct Options {
    pub host: IpAddr,
    /// 0 picks a free one.
    pub port: u16,
    /// Where data and secrets are kept; `None` keeps nothing.
    pub data_dir: Option<PathBuf>,
    /// The organization to work with; made if it is not there.
    pub organization: Slug,
    /// bcrypt's cost; 12 if not given.
    pub bcrypt_cost: Option<u32>,
    /// Signs session tokens instead of a generated secret.
    pub session_token_secret: Option<SecretString>,
    /// Open the internal routes, with commas between, instead of a generated token.
    pub service_tokens: Option<SecretString>,
    /// Whom to tell that caches are out of date, in the shape of the secret `data-planes`, or on loopback by `http`.
    pub data_planes: Option<SecretString>,
    /// Sign Stripe's test events, with commas between; without any, billing is not configured.
    pub stripe_secrets: Option<SecretString>,
    /// For whom the internal routes exist. Where a list is not set: loopback, if that is where the runner listens, else nobody.
    pub internal: InternalGuard,
    /// Where webhooks may lead.
    pub webhooks: Reach,
    pub deadlines: Deadlines,
    /// Whether the workers run; tests that watch the store or the clock let them rest.
    pub workers: bool,
    /// Who learns what each function asks of AWS: tests that hold it against the template's policies.
    pub witness: Option<Arc<dyn Witness>>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
}

/// The running control plane.
pub struct Runner {
    pub base_url: String,
    pub founded: Founded,
    pub secrets: LocalSecrets,
    /// What the handlers work with, for tests that look behind the HTTP API.
    pub app: App,
    pub gateway: Arc<Gateway>,
    pub emulator: Emulator,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
    /// End with the runner.
    workers: JoinSet<()>,
    /// Held while the data directory is in use.
    _lock: Option<File>,
}

impl Runner {
    pub async fn start(options: Options) -> Result<Self> {
        Self::start_behind(options, None).await
    }

    /// Like [`start`](Self::start), with the SDK pointed at what `proxy` makes of the store's URL: tests put faults in between.
    pub async fn start_behind(options: Options, proxy: Option<&dyn Fn(&str) -> String>) -> Result<Self> {
        let lock = options.data_dir.as_deref().map(lock).transpose()?;
        let folder = options.data_dir.as_deref();
        let tables = Tables::local();
        let mut config = Config::local(tables.clone(), options.bcrypt_cost)?;
        config.internal = if options.host.is_loopback() { options.internal.or_loopback() } else { options.internal };
        config.webhooks = options.webhooks;
        config.deadlines = options.deadlines;
        let given = Given {
            session_token_secret: options.session_token_secret,
            service_tokens: options.service_tokens,
            data_planes: options.data_planes,
            stripe_secrets: options.stripe_secrets,
        };
        let secrets = LocalSecrets::open(folder, given, &*options.entropy)?;
        let template = Template::parse(TEMPLATE)?;
        let emulator = Emulator::start(folder, &template, &tables, &*options.entropy)?;
        let dynamodb_endpoint = emulator.endpoint();
        let endpoint = proxy.map_or_else(|| dynamodb_endpoint.clone(), |proxy| proxy(&dynamodb_endpoint));
        let mut sdk = config::local_sdk(&endpoint, emulator.access_key()).await;
        if proxy.is_none() {
            sdk = sdk.into_builder().http_client(emulator.http_client()).build();
        }
        let mut app = App::new(config, &sdk, secrets.source(), options.clock, options.entropy);
        app.witness = options.witness;
        app.secrets.warm_up().await?;
        let gateway = Arc::new(Gateway::new(&app, &template)?);
        let workers = if options.workers {
            workers::start(registry::workers(&app, &gateway), &template, &emulator, &app.clock)?
        } else {
            JoinSet::new()
        };
        let founded = bootstrap::organization(&app, &options.organization, "local runner").await?;

        let address = SocketAddr::new(options.host, options.port);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("--host, --port: cannot listen on {address}"))?;
        let base_url = format!("http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|connection| {
            connection.set_nodelay(true).ok();
        });
        let (stop, stopped) = oneshot::channel();
        let service = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&gateway))
            .into_make_service_with_connect_info::<SocketAddr>();
        let served = tokio::spawn(async move {
            axum::serve(listener, service)
                .with_graceful_shutdown(async {
                    stopped.await.ok();
                })
                .await
        });
        Ok(Self { base_url, founded, secrets, app, gateway, emulator, stop, served, workers, _lock: lock })
    }

    /// Answers what is under way, then ends.
    pub async fn stop(mut self) {
        drop(self.stop);
        if timeout(STOPPED_WITHIN, self.served).await.is_err() {
            tracing::warn!("requests were still under way after {STOPPED_WITHIN:?}");
        }
        self.workers.shutdown().await;
        drop((self.app, self.gateway));
        timeout(STOPPED_WITHIN, self.emulator.stop()).await.ok();
    }
}

async fn answer(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    gateway.answer(peer, request).await
}

/// Makes the directory, for its owner alone, and takes it: two runners over one store would each trust a cache of their own.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("--data-dir: cannot make {}", folder.display()))?;
    let path = folder.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another runner works on {}: stop it, or choose another --data-dir", folder.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
