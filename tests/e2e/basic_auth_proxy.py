"""A reverse proxy that asks for user and password (basic authentication), as one stands in front of a schema registry that has no users.

    client -> user and password right? -> the server at UPSTREAM -> its answer, as it is

usage: basic_auth_proxy.py UPSTREAM USER:PASSWORD      prints the port of 127.0.0.1 that it listens at
"""

import base64
import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

UPSTREAM = urlsplit(sys.argv[1]).netloc
CREDENTIALS = "Basic " + base64.b64encode(sys.argv[2].encode()).decode()


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != CREDENTIALS:
            return self.answer(401, [("www-authenticate", 'Basic realm="registry"')], b"")
        headers = {name: self.headers[name] for name in ("accept", "content-type") if name in self.headers}
        connection = http.client.HTTPConnection(UPSTREAM, timeout=20)
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.answer(answer.status, [("content-type", answer.getheader("content-type", ""))], content)

    def answer(self, status, headers, content):
        self.send_response(status)
        for name, value in [*headers, ("content-length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = forward

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
print(server.server_port, flush=True)
server.serve_forever()
