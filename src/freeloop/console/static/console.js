/* What the pages need beside htmx: charts, keys, forms that send themselves, and whether we are connected. */
(() => {
  "use strict";
  const live = document.getElementById("live");
  const root = live.dataset.root;
  const SECONDS = 900;

  /* Charts */

  const CHARTS = {
    requests: [["requests", "a"]],
    latency: [["p99", "a", 1000], ["p50", "b", 1000]],
    errors: [["errors", "bad"], ["shed", "b"]],
    running: [["running", "a"], ["limit", "b"]],
    lag: [["lag", "a", 1000]],
    pool: [["lent", "a"], ["pool", "b"], ["pool_waiting", "bad"]],
    breakers: [["breakers", "bad"]],
    tasks: [["tasks", "a"]],
  };
  const UNITS = { latency: " ms", lag: " ms" };
  let columns = null;
  let charts = [];

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const short = (value) =>
    value >= 1e6 ? `${+(value / 1e6).toFixed(1)}M` : value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(1)}`;

  const say = (name, value) =>
    !UNITS[name] ? short(value) : value >= 1000 ? `${short(value / 1000)} s` : short(value) + UNITS[name];

  function select(name) {
    return [columns.at, ...CHARTS[name].map(([column, , by]) =>
      by ? columns[column].map((value) => (value === null ? null : value * by)) : columns[column])];
  }

  function scaleX() {
    const now = Date.now() / 1000;
    return [now - SECONDS, now];
  }

  function draw(element) {
    const name = element.dataset.chart;
    const axis = { stroke: style("--faint"), font: "10px system-ui", grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: element.clientWidth || 260,
      height: element.clientHeight || 90,
      legend: { show: false },
      cursor: { show: false },
      padding: [6, 4, 0, 0],
      scales: { x: { time: true, range: scaleX }, y: { range: (_, low, high) => [0, Math.max(1, high || 0) * 1.1] } },
      axes: [
        { ...axis, size: 18, splits: () => [0, 5, 10, 15].map((minutes) => Math.round(Date.now() / 1000) - 60 * minutes).reverse(), values: (_, ticks) => ticks.map((at) => {
          const minutes = Math.round((Date.now() / 1000 - at) / 60);
          return minutes ? `−${minutes}′` : "0′";
        }), grid: { show: false } },
        { ...axis, size: 44, space: 26, values: (_, ticks) => ticks.map((value) => say(name, value)) },
      ],
      series: [{}, ...CHARTS[name].map(([, colour], index) => ({
        stroke: style(`--${colour}`),
        width: 1.25,
        fill: index === 0 ? `${style(`--${colour}`)}22` : undefined,
        points: { show: false },
        spanGaps: true,
      }))],
    };
    const chart = new uPlot(options, select(name), element);
    charts.push({ chart, name, element });
  }

  function redraw() {
    charts.forEach(({ chart }) => chart.destroy());
    charts = [];
    document.querySelectorAll(".chart").forEach(draw);
  }

  function add(sample) {
    if (!columns || sample.at <= (columns.at.at(-1) ?? 0)) return;
    for (const name of Object.keys(columns)) {
      columns[name].push(sample[name]);
      if (columns[name].length > SECONDS) columns[name].shift();
    }
    if (document.querySelectorAll(".chart").length !== charts.length) redraw();
    else charts.forEach(({ chart, name }) => chart.setData(select(name)));
    document.documentElement.dataset.sample = sample.at;
  }

  async function begin() {
    const answer = await fetch(`${root}/history.json?process=${live.dataset.process}`);
    if (!answer.ok) return;
    columns = await answer.json();
    redraw();
  }

  if (live.dataset.page === "now") {
    begin();
    live.addEventListener("sample", (event) => add(JSON.parse(event.detail.data)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let due = 0;
    new ResizeObserver(() => {
      clearTimeout(due);
      due = setTimeout(() => charts.forEach(({ chart, element }) =>
        chart.setSize({ width: element.clientWidth, height: element.clientHeight })), 100);
    }).observe(live);
  }

  /* Whether what is shown is of now */

  const state = document.getElementById("state");
  const tell = (lost) => { state.textContent = lost ? state.dataset.lost : ""; document.body.classList.toggle("lost", lost); };
  let broken = false;
  document.addEventListener("htmx:sse:error", () => { broken = true; tell(true); });
  document.addEventListener("htmx:sse:after:message", () => {
    if (broken) { broken = false; if (columns) begin(); }
    tell(false);
    document.documentElement.dataset.updates = 1 + Number(document.documentElement.dataset.updates || 0);
  });

  /* Forms and keys */

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-confirm]");
    if (button && !confirm(button.dataset.confirm)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = document.querySelectorAll("header nav a")[Number(event.key) - 1];
    if (page) page.click();
  });
})();
