//! An S3 server (s3s over a directory) on a thread of this process.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder as Connection,
};
use s3s::{
    S3Request, S3Result,
    access::S3Access,
    auth::SimpleAuth,
    dto::CopyObjectInput,
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, sync::oneshot};

use super::{PORT_TRIES, poll, ports::free_port, random_hex};
use crate::{Context, Failure, Result, http};

#[derive(Clone, Debug)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
}

pub struct S3 {
    root: PathBuf,
    port: u16,
    credentials: Credentials,
    thread: Option<ServerThread>,
}

/// Dropping `stop` ends the thread, and with it every connection.
struct ServerThread {
    stop: oneshot::Sender<()>,
    handle: JoinHandle<()>,
}

impl S3 {
    /// A server whose buckets are directories below `dir`; the bucket [`S3::bucket`] is there.
    pub fn start(dir: &Path) -> Result<S3> {
        let mut server = S3 {
            root: dir.to_owned(),
            port: 0,
            credentials: Credentials { access_key_id: random_hex()?, secret_access_key: random_hex()? },
            thread: None,
        };
        let bucket = dir.join(server.bucket());
        fs::create_dir_all(&bucket).context(format!("making {}", bucket.display()))?;
        for attempt in 1.. {
            server.port = free_port();
            match server.launch() {
                Err(failure) if attempt < PORT_TRIES && is_port_used(&failure) => continue,
                result => return result.map(|()| server),
            }
        }
        unreachable!("the loop returns at the last attempt");
    }

    /// A server that another process runs, whose directory `root` is.
    pub fn elsewhere(root: &Path, port: u16, credentials: Credentials) -> S3 {
        S3 { root: root.to_owned(), port, credentials, thread: None }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn bucket(&self) -> &'static str {
        "ferry"
    }

    /// The directory in which objects are files.
    pub fn bucket_dir(&self) -> PathBuf {
        self.root.join(self.bucket())
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// A client of the SDK, for tests that look at objects or spoil them; for async tests, unlike the rest.
    pub fn client(&self) -> aws_sdk_s3::Client {
        let credentials = aws_sdk_s3::config::Credentials::new(
            &self.credentials.access_key_id,
            &self.credentials.secret_access_key,
            None,
            None,
            "harness",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("auto"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .credentials_provider(credentials)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    /// Closes the port and all connections, as a killed server would; objects stay.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(ServerThread { stop, handle }) = self.thread.take() {
            drop(stop);
            handle.join().map_err(|_| Failure::new("the S3 thread panicked"))?;
            // A child that another thread is starting has a copy of the socket until its exec.
            poll("closing the S3 port", || Ok(TcpStream::connect(self.address()).is_err().then_some(())))?;
        }
        Ok(())
    }

    /// The same as [`S3::stop`]: there is no other way for it to end.
    pub fn kill(&mut self) -> Result<()> {
        self.stop()
    }

    /// Starts again on the same port and objects.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    fn launch(&mut self) -> Result<()> {
        let (service, address) = (service(&self.root, &self.credentials)?, self.address());
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let handle = thread::Builder::new()
            .name("s3".to_owned())
            .spawn(move || run(service, address, &bound, stopped))
            .context("starting the S3 thread")?;
        is_bound.recv().context("the S3 thread ended at once")??;
        self.thread = Some(ServerThread { stop, handle });
        // An unsigned request: the refusal comes from the whole way through the service.
        poll("the S3 server", || Ok(http::get(address, "/").is_ok_and(|reply| reply.status == 403).then_some(())))
    }
}

/// Serves the buckets below `dir` in the foreground until `stopped`; `bucket` is made.
pub async fn serve_s3(
    listen: SocketAddr,
    dir: &Path,
    bucket: &str,
    credentials: &Credentials,
    stopped: impl Future<Output = ()>,
) -> Result<()> {
    let bucket = dir.join(bucket);
    fs::create_dir_all(&bucket).context(format!("making {}", bucket.display()))?;
    let service = service(dir, credentials)?;
    let listener = TcpListener::bind(listen).await.context(format!("S3 on {listen}"))?;
    tokio::select! {
        () = stopped => {}
        () = accept(listener, service) => {}
    }
    Ok(())
}

fn service(root: &Path, credentials: &Credentials) -> Result<S3Service> {
    let files = FileSystem::new(root).map_err(|error| format!("{error:?}")).context("opening the S3 directory")?;
    let mut service = S3ServiceBuilder::new(files);
    let Credentials { access_key_id, secret_access_key } = credentials.clone();
    service.set_auth(SimpleAuth::from_single(access_key_id, secret_access_key));
    service.set_access(NoCopies);
    Ok(service.build())
}

/// Below a prefix whose name begins so, nobody may copy objects: for tests of what is done instead.
pub const NO_COPIES: &str = "no_copies";

/// Elsewhere s3s-fs copies as S3 does, also an object onto itself with other metadata, and refuses when the source's ETag
/// is not the one asked for. One difference: an object that was sent in parts keeps its ETag, where S3 makes it the MD5.
struct NoCopies;

#[async_trait::async_trait]
impl S3Access for NoCopies {
    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        let refused = request.input.key.split('/').any(|segment| segment.starts_with(NO_COPIES));
        if refused { Err(s3_error!(AccessDenied)) } else { Ok(()) }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // A panic in the thread has been printed already.
        drop(self.stop());
    }
}

/// Serves until `stopped`. The runtime is this thread's own: it must outlive that of any single test.
fn run(service: S3Service, address: SocketAddr, bound: &mpsc::Sender<Result<()>>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime.context("starting the S3 runtime") {
        Ok(runtime) => runtime,
        // Only gone when the starter is, and then nobody is there to be told.
        Err(failure) => return drop(bound.send(Err(failure))),
    };
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.context(format!("S3 on {address}"));
        let listener = match listener {
            Ok(listener) => listener,
            Err(failure) => return drop(bound.send(Err(failure))),
        };
        drop(bound.send(Ok(())));
        tokio::select! {
            // An error is the sender being dropped, which is how it is asked to stop.
            _ = stopped => {}
            () = accept(listener, service) => {}
        }
    });
    // Cuts every open connection.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

async fn accept(listener: TcpListener, service: S3Service) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some connections end.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Else every small reply waits about 43 ms, until the client's delayed acknowledgement.
        if socket.set_nodelay(true).is_err() {
            continue;
        }
        let service = service.clone();
        tokio::spawn(async move {
            let connection = Connection::new(TokioExecutor::new());
            // A connection that breaks is the client's to report.
            drop(connection.serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

fn is_port_used(failure: &Failure) -> bool {
    failure.to_string().contains("Address already in use")
}
