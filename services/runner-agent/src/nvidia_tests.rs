use std::process::Command;

use super::*;

/// Loads NVML's double, whose first GPU is lost while the file is there.
fn double(folder: &std::path::Path) -> (Nvidia, std::path::PathBuf) {
    let (library, lost) = (folder.join("libnvidia-ml.so"), folder.join("lost"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/nvml_double.c");
    let define = format!("-DLOST=\"{}\"", lost.display());
    let built = Command::new("cc").args(["-shared", "-fPIC", &define, source, "-o"]).arg(&library).status();
    assert!(built.unwrap().success());
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().unwrap();
    (Nvidia::new(nvml), lost)
}

#[test]
fn whole_gpus_instances_and_lost_ones_are_read_as_nvml_documents_them() {
    let folder = tempfile::tempdir().unwrap();
    let (nvidia, lost) = double(folder.path());
    let readings = nvidia.read();
    let mib = |bytes: u64| bytes >> 20;
    let told: Vec<_> = readings.iter().map(|r| (r.id.as_str(), mib(r.usable), mib(r.free))).collect();
    let all = [
        ("GPU-whole", 81_559 - 551, 81_559 - 551 - 31_000),
        // In place of the GPU that they are parts of.
        ("MIG-first", 4864, 4851),
        ("MIG-second", 19_968, 14_981),
        ("GPU-old", 14_905, 14_905),
    ];
    assert_eq!(told, all);
    assert_eq!(readings[2].name, "NVIDIA A100-SXM4-40GB MIG 3g.20gb");
    let holders = |n: usize| -> Vec<_> {
        readings[n].holders.iter().map(|holder| (holder.pid, holder.bytes.map(mib))).collect()
    };
    // Each once: 100 computes and draws, of 101 the driver tells no size, 103 is a client of MPS.
    assert_eq!(holders(0), [(100, Some(30_000)), (101, None), (102, Some(400)), (103, Some(300))]);
    assert_eq!((holders(1), holders(2)), (vec![], vec![(200, Some(4900))]));

    std::fs::write(&lost, "").unwrap();
    let left: Vec<_> = nvidia.read().into_iter().map(|reading| reading.id.to_string()).collect();
    assert_eq!(left, ["MIG-first", "MIG-second", "GPU-old"], "the others go on");
    assert!(nvidia.told.lock().unwrap().get(&0).unwrap().contains("fell off the bus"));
    std::fs::remove_file(&lost).unwrap();
    assert_eq!(nvidia.read(), readings);
    assert!(nvidia.told.lock().unwrap().is_empty());
}

#[test]
fn a_program_may_use_one_instance() {
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    assert!(is_alone(&ids(&["MIG-a"])) && !is_alone(&ids(&["GPU-a", "GPU-b"])));
}
