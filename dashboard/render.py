"""The parts of dashboard/render: the service behind the receiver, the load, and the drawing."""
import base64, hashlib, heapq, hmac, html, http.client, http.server, itertools, json, math, os, random, re, sys, threading, time
import urllib.parse, urllib.request
from concurrent.futures import ThreadPoolExecutor

# What happens, and from which second to which.
PHASES = {"redelivered": (40, 80), "forged": (95, 130), "failing": (145, 185), "key roll": (198, 218), "store away": (250, 262)}
TOTAL = 300


def during(phase, t):
    return PHASES[phase][0] <= t < PHASES[phase][1]


# --- the service behind FORWARD_URL: it takes as long, and answers, as the message says

class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(float(self.headers.get("X-Take", 0)))
        status, body = int(self.headers.get("X-Answer", 200)), b'{"done":true}'
        self.send_response(status, "as asked")
        if status == 489:
            self.send_header("Upstash-NonRetryable-Error", "true")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class UpstreamServer(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


# --- the load

KEYS = {name: os.environ.get(f"QSTASH_{name.upper()}_SIGNING_KEY", "").encode() for name in ("current", "next")}
numbers = itertools.count()


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(body, subject, key, lifetime=300):
    now = int(time.time())
    claims = {"aud": "", "body": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode(), "exp": now + lifetime, "iat": now,
              "iss": "Upstash", "jti": f"jwt_{next(numbers)}", "nbf": -62135596800, "sub": subject}
    signed = b64(b'{"alg":"HS256","typ":"JWT"}') + "." + b64(json.dumps(claims, separators=(",", ":")).encode())
    return signed + "." + b64(hmac.new(key, signed.encode(), hashlib.sha256).digest())


class Load:
    def __init__(self, port):
        self.port, self.origin = port, f"http://127.0.0.1:{port}"
        self.random, self.began, self.later, self.lock = random.Random(1), time.monotonic(), [], threading.Lock()
        self.workers = ThreadPoolExecutor(128)

    def now(self):
        return time.monotonic() - self.began

    def after(self, seconds, f, *args):
        with self.lock:
            heapq.heappush(self.later, (self.now() + seconds, next(numbers), f, args))

    def post(self, body, headers):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            c.request("POST", "/", body, {"Content-Type": "application/json", "User-Agent": "Upstash-QStash", **headers})
            answer = c.getresponse()
            answer.read()
            return answer
        except OSError:
            return None
        finally:
            c.close()

    def key(self, t):  # from the roll on, QStash signs with what the receiver knows as the next key
        start, end = PHASES["key roll"]
        return KEYS["next" if self.random.random() < (t - start) / (end - start) else "current"]

    def deliver(self, message, attempt=0):
        body, take = message["body"], message["take"]
        answer, t = 200, self.now()
        if during("failing", t):
            answer = self.random.choices([200, 500, 503, 489], [55, 30, 7, 8])[0]
        got = self.post(body, {"Upstash-Message-Id": message["id"], "Upstash-Retried": str(attempt), "X-Take": f"{take:.3f}", "X-Answer": str(answer),
                               "Upstash-Signature": token(body, self.origin + "/", self.key(t))})
        if got and got.status >= 500 and attempt < 3:  # like QStash, but sooner
            self.after(min(float(got.getheader("Retry-After", 4 * 2**attempt)), 10), self.deliver, message, attempt + 1)

    def message(self, take=None):
        r = self.random
        size, usual = 1000, min(r.lognormvariate(math.log(0.03), 0.7), 1)
        if r.random() < 0.03:
            size, usual = r.randint(1, 4) << 20, r.uniform(0.4, 1.5)
        return {"id": f"msg_{next(numbers)}", "body": b'{"n":%d}' % next(numbers) + b" " * size, "take": take or usual}

    def forged(self, kind):
        body, subject, key = b"{}", self.origin + "/", KEYS["current"]
        headers = {"Upstash-Message-Id": f"msg_{next(numbers)}"}
        if kind == "signature":
            headers["Upstash-Signature"] = token(body, subject, b"guessed")
        elif kind == "malformed":
            headers["Upstash-Signature"] = "e30.e30"
        elif kind == "expired":
            headers["Upstash-Signature"] = token(body, subject, key, -60)
        elif kind == "subject":
            headers["Upstash-Signature"] = token(body, "https://other.example/", key)
        elif kind == "body hash":
            headers["Upstash-Signature"] = token(b"another", subject, key)
        elif kind == "replayed":
            headers["Upstash-Signature"] = token(body, subject, key)
            self.post(body, headers)
            headers["Upstash-Message-Id"] = f"msg_{next(numbers)}"
        self.post(body, headers)

    def run(self):
        forgeries = {"signature": 14, "missing": 8, "malformed": 4, "expired": 3, "subject": 2, "body hash": 1.5, "replayed": 1}
        tick, slow = 0.05, 0
        for n in range(int(TOTAL / tick)):
            time.sleep(max(0, n * tick - self.now()))
            t = self.now()
            some = lambda rate: self.random.random() < rate * tick
            if some(10 + 3 * math.sin(t / 20)):
                m = self.message()
                self.workers.submit(self.deliver, m)
                if during("redelivered", t) and self.random.random() < 0.35:
                    self.after(self.random.uniform(0.02, 3), self.deliver, m)
            if during("redelivered", t) and t < 68 and t > slow:
                m, slow = self.message(take=12.5), t + 3
                self.workers.submit(self.deliver, m)
                self.after(1, self.deliver, m)
            if during("forged", t):
                for kind, rate in forgeries.items():
                    if some(rate):
                        self.workers.submit(self.forged, kind)
            with self.lock:
                due = []
                while self.later and self.later[0][0] <= t:
                    due.append(heapq.heappop(self.later))
            for _, _, f, args in due:
                self.workers.submit(f, *args)
        self.workers.shutdown(cancel_futures=True)


# --- the drawing

COLOURS = {"green": "#56a64b", "blue": "#3274d9", "light-blue": "#8ab8ff", "yellow": "#f2cc0c", "light-orange": "#ffb357", "orange": "#fa6400",
           "purple": "#8f3bb8", "dark-purple": "#5b2a86", "red": "#e02f44", "dark-red": "#9c1527", "light-red": "#ff7383"}
CLASSIC = ["#56a64b", "#e0a800", "#3274d9", "#fa6400", "#e02f44", "#8f3bb8", "#1f9aa0", "#7d64b5"]
STEP, RATE_INTERVAL = 2, 8  # seconds; as Grafana reckons it, four scrapes
WIDTH, ROW, GAP, TOP = 900, 25, 8, 46


class Prometheus:
    def __init__(self, port, began):
        self.base, self.began = f"http://127.0.0.1:{port}/api/v1/", began
        self.app = self.get("label/app/values", **{"match[]": "qstash_deliveries_total"})[0]

    def get(self, path, **query):
        with urllib.request.urlopen(self.base + path + "?" + urllib.parse.urlencode(query)) as answer:
            return json.load(answer)["data"]

    def series(self, target):
        """What target's query gives: name and [(second, value)] of each series."""
        expr = target["expr"].replace("$__rate_interval_ms", str(1000 * RATE_INTERVAL)).replace("$__rate_interval", f"{RATE_INTERVAL}s").replace("$app", self.app)
        if target.get("instant"):
            result = self.get("query", query=expr, time=self.began + TOTAL)["result"]
        else:
            result = self.get("query_range", query=expr, start=self.began, end=self.began + TOTAL, step=STEP)["result"]
        for r in result:
            name = re.sub(r"\{\{(\w+)\}\}", lambda m: r["metric"].get(m[1], ""), target["legendFormat"])
            points = [(at - self.began, float(v)) for at, v in r.get("values") or [r["value"]]]
            yield name, [(at, v) for at, v in points if math.isfinite(v)]


def shown(value, unit, decimals=None):
    if unit == "s":
        return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"
    if unit == "bytes":
        return "0 B" if value == 0 else f"{value / 2**20:g} MiB"
    if unit == "dtdurations":
        return f"{value / 60:.0f} minutes"
    return f"{value:g}" + (" " + unit.removeprefix("suffix:") if unit.startswith("suffix:") else "")


def ticks(top, unit):
    base = 2**20 if unit == "bytes" else 1
    rough = top / base / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough) * base
    if unit == "short":
        step = max(1, math.ceil(step))
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def text(x, y, s, size=11, fill="#24292e", anchor="start", weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">{html.escape(s)}</text>'


def colour(panel, name, i):
    for o in panel["fieldConfig"]["overrides"]:
        for p in o["properties"]:
            if o["matcher"]["options"] == name and p["id"] == "color":
                return COLOURS[p["value"]["fixedColor"]]
    return CLASSIC[i % len(CLASSIC)]


def unit(panel, name):
    for o in panel["fieldConfig"]["overrides"]:
        for p in o["properties"]:
            if o["matcher"]["options"] == name and p["id"] == "unit":
                return p["value"]
    return panel["fieldConfig"]["defaults"]["unit"]


def draw_stat(panel, series, x, y, w, h):
    out = []
    for i, (name, points) in enumerate(series):
        centre = x + w * (i + 0.5) / len(series)
        out.append(text(centre, y + 43, shown(points[-1][1], unit(panel, name)), 16, anchor="middle", weight="600"))
        out.append(text(centre, y + h - 7, name, 11, "#57606a", "middle"))
    return out


def draw_lines(panel, series, x, y, w, h):
    custom, of = panel["fieldConfig"]["defaults"]["custom"], panel["fieldConfig"]["defaults"]["unit"]
    stacked, log = custom.get("stacking", {}).get("mode") == "normal", "scaleDistribution" in custom
    out, legend, at = [], [], [x + 12.0, 1]
    for i, (name, _) in enumerate(series):
        wide = 20 + 6.4 * len(name)
        if at[0] + wide > x + w:
            at = [x + 12.0, at[1] + 1]
        legend.append((at[0], at[1], name, colour(panel, name, i)))
        at[0] += wide + 4
    left, right, above = x + 66, x + w - 12, y + 42
    below = y + h - 24 - 15 * at[1]
    for lx, line, name, c in legend:
        ly = y + h - 9 - 15 * (at[1] - line)
        out.append(f'<rect x="{lx:.1f}" y="{ly - 6:.1f}" width="12" height="4" rx="2" fill="{c}"/>' + text(lx + 17, ly, name, 11, "#57606a"))
    if stacked:
        seconds = sorted({s for _, points in series for s, _ in points})
        floor, layers = dict.fromkeys(seconds, 0.0), []
        for i, (name, points) in enumerate(series):
            values, bottom = dict(points), dict(floor)
            for s in seconds:
                floor[s] += values.get(s, 0)
            layers.append((colour(panel, name, i), bottom, dict(floor)))
        top = max(floor.values())
    else:
        top = max([v for _, points in series for _, v in points] + [0])
    if log:
        lowest = min(v for _, points in series for _, v in points if v > 0)
        lo, hi = math.floor(math.log10(lowest)), math.ceil(math.log10(top))
        marks = [10.0**e for e in range(lo, hi + 1)]
        px_y = lambda v: below - (math.log10(max(v, 10.0**lo)) - lo) / (hi - lo) * (below - above)
    else:
        marks = ticks(top or 1, of)
        px_y = lambda v: below - v / marks[-1] * (below - above)
    px_x = lambda s: left + s / TOTAL * (right - left)
    for name, (start, end) in PHASES.items():
        out.append(f'<rect x="{px_x(start):.1f}" y="{above:.1f}" width="{px_x(end) - px_x(start):.1f}" height="{below - above:.1f}" fill="#eef1f5"/>')
        out.append(text(px_x((start + end) / 2), above - 4, name, 9, "#8b949e", "middle"))
    for v in marks:
        out.append(f'<line x1="{left}" x2="{right}" y1="{px_y(v):.1f}" y2="{px_y(v):.1f}" stroke="#dfe3e8"/>' + text(left - 6, px_y(v) + 3.5, shown(v, of), 10, "#57606a", "end"))
    for minute in range(TOTAL // 60 + 1):
        out.append(text(px_x(60 * minute), below + 13, f"{minute} min", 10, "#57606a", "end" if minute == TOTAL // 60 else "middle"))
    if stacked:
        for c, bottom, upper in layers:
            there = [f"{px_x(s):.1f},{px_y(upper[s]):.1f}" for s in seconds]
            back = [f"{px_x(s):.1f},{px_y(bottom[s]):.1f}" for s in reversed(seconds)]
            out.append(f'<polygon points="{" ".join(there + back)}" fill="{c}" fill-opacity="0.75"/>')
        return out
    for i, (name, points) in enumerate(series):
        runs, last = [], None
        for s, v in points:  # a gap where the query gave nothing
            if last is None or s - last > 1.5 * STEP:
                runs.append([])
            runs[-1].append(f"{px_x(s):.1f},{px_y(v):.1f}")
            last = s
        for run in runs:
            out.append(f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour(panel, name, i)}" stroke-width="1.6" stroke-linejoin="round"/>')
    return out


def draw(prometheus):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "grafana.json")) as f:
        board = json.load(f)
    out, bottom = [text(GAP + 4, 30, board["title"], 18, weight="600"), text(WIDTH - GAP - 4, 30, f"app: {prometheus.app}", 12, "#57606a", "end")], 0
    for panel in board["panels"]:
        grid = panel["gridPos"]
        x, y = GAP / 2 + grid["x"] * (WIDTH - GAP) / 24 + GAP / 2, TOP + grid["y"] * ROW
        w, h = grid["w"] * (WIDTH - GAP) / 24 - GAP, grid["h"] * ROW - GAP
        bottom = max(bottom, y + h)
        out.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{h}" rx="4" fill="#fff" stroke="#d8dee4"/>' + text(x + 12, y + 20, panel["title"], 12.5, weight="600"))
        series = [s for target in panel["targets"] for s in prometheus.series(target)]
        if not series:
            sys.exit(f"dashboard/render: {panel['title']} shows nothing")
        out += (draw_stat if panel["type"] == "stat" else draw_lines)(panel, series, x, y, w, h)
    out.append(text(WIDTH / 2, bottom + 19, "Drawn by dashboard/render from this dashboard's own queries on a real run of five minutes. Not a screenshot of Grafana.", 11, "#57606a", "middle"))
    height = int(bottom + 30)
    print('<!doctype html><meta charset="utf-8"><style>body{margin:0}svg{display:block}</style>'
          f'<svg width="{WIDTH}" height="{height}" xmlns="http://www.w3.org/2000/svg" font-family="Inter, Helvetica, Arial, \'DejaVu Sans\', sans-serif">'
          f'<rect width="{WIDTH}" height="{height}" fill="#f6f8fa"/>' + "\n".join(out) + "</svg>")


match sys.argv[1:]:
    case ["upstream", port]:
        UpstreamServer(("127.0.0.1", int(port)), Upstream).serve_forever()
    case ["away"]:
        print(*PHASES["store away"])
    case ["load", port]:
        Load(int(port)).run()
    case ["draw", port, began]:
        draw(Prometheus(int(port), int(began)))
    case _:
        sys.exit("run dashboard/render")
