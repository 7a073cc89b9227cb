//! probe
use caudal_tests::{Server, Version};
#[test]
fn probe() {
    for v in Version::ALL {
        let t = std::time::Instant::now();
        let s = Server::start::<&str>(v, &[]).unwrap();
        println!("{v} started {:?} {:?}", t.elapsed(), s.address());
        let t = std::time::Instant::now();
        s.kill9().unwrap();
        s.resume().unwrap();
        s.restart().unwrap();
        println!("{v} kill+restart {:?}", t.elapsed());
    }
    for v in Version::ALL {
        let t = std::time::Instant::now();
        let _a = Server::shared(v).unwrap();
        let b = Server::shared(v).unwrap();
        println!("{v} shared {:?} {:?}", t.elapsed(), b.address().port);
    }
}
