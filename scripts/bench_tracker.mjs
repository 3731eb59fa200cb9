// The yardstick: bittorrent-tracker, HTTP only. Its main entry wants a native module; ./server does not.
import Server from 'bittorrent-tracker/server'

const server = new Server({ udp: false, ws: false, http: true, stats: false })
server.on('error', error => console.error(error.message))
server.on('warning', () => {})
server.listen(0, '127.0.0.1', () => console.log(`listening on http://127.0.0.1:${server.http.address().port}`))
