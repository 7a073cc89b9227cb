//! The second S3 server: moto, written by others, in a Python environment of its own.

use crate::agent::Config;
use crate::databases::free_port;
use crate::{Context, Result, bail, venv};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGES: &[&str] = &["moto[server]==5.2.*"];

const DUMP: &str = "\
import boto3, os, sys
endpoint, bucket, prefix, out = sys.argv[1:]
s3 = boto3.client('s3', endpoint_url=endpoint, region_name='us-east-1',
                  aws_access_key_id='x', aws_secret_access_key='x')
for page in s3.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix=prefix):
    for item in page.get('Contents', []):
        path = os.path.join(out, item['Key'][len(prefix):].lstrip('/'))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        s3.download_file(bucket, item['Key'], path)
";

/// A running moto server; it ends with this value.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    port: u16,
    python: std::path::PathBuf,
}

impl Moto {
    /// Starts one (about three seconds) and creates the buckets.
    pub fn start(buckets: &[&str]) -> Result<Moto> {
        let python = venv::python("moto", PACKAGES)?;
        let port = free_port()?;
        let child = Command::new(python.with_file_name("moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start moto_server")?;
        let mut moto = Moto {
            child,
            port,
            python,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline || moto.child.try_wait()?.is_some() {
                bail!("moto_server did not start");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for bucket in buckets {
            let answer = moto.request(&format!("PUT /{bucket}"))?;
            if !answer.contains(" 200 ") {
                bail!("moto refused to create bucket {bucket}: {answer}");
            }
        }
        Ok(moto)
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a config's sink this server: `s3://<bucket>/<prefix>`.
    pub fn configure(&self, config: &mut Config, bucket: &str, prefix: &str) {
        config.set("sink.url", format!("s3://{bucket}/{prefix}"));
        config.set("sink.endpoint", self.endpoint());
        config.set("sink.region", "us-east-1");
        config.set("sink.path_style", true);
    }

    /// Writes every object below `prefix` to a file below `dir`, for the oracle.
    pub fn dump(&self, bucket: &str, prefix: &str, dir: &Path) -> Result<()> {
        let output = Command::new(&self.python)
            .args(["-c", DUMP, &self.endpoint(), bucket, prefix])
            .arg(dir)
            .output()?;
        if !output.status.success() {
            bail!(
                "cannot read moto's objects: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn request(&self, line: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let head = format!("{line} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
