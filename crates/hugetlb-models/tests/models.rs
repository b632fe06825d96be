#![cfg(feature = "run")]
use hugetlb::*;
use hugetlb_models::*;
#[test]
fn one() {
    let v: Vec<String> = std::env::var("MODEL").unwrap().split(' ').map(String::from).collect();
    let model = models::Model::named(&v[0]);
    let protocol = ProtocolKind::from_name(&v[1]).unwrap();
    if let Ok(m) = std::env::var("HUGETLB_MUTANT") {
        hugetlb::mutant::select(&m);
    }
    let e = match v[2].as_str() {
        "loom" => Explorer::Loom(v.get(3).map_or(model.preemptions, |n| n.parse().unwrap())),
        "random" => Explorer::Random(300),
        _ => Explorer::Pct(300),
    };
    let run = model.run;
    let t = std::time::Instant::now();
    let n = e.explore(move || run(protocol));
    println!("\n@@ {v:?} {n} {:?}", t.elapsed());
}
