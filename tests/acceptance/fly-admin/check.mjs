// One step of S4 per run, named by the argument; prints JSON. `state.json` carries ids between them.
import fs from 'node:fs'
import { createRequire } from 'node:module'

// The exported createClient ignores its base URL; the class does not.
const require = createRequire(import.meta.url)
const { default: Client } = require('fly-admin/dist/client')

const { API_URL: apiUrl, API_TOKEN: token } = process.env
const { App, Machine } = new Client(token, { apiUrl })
const app_name = 'crew'
const load = () => JSON.parse(fs.readFileSync('state.json', 'utf8'))

const config = {
	image: 'skein/hello',
	services: [
		{
			protocol: 'tcp',
			internal_port: 8080,
			autostart: false,
			ports: [{ port: 80, handlers: ['http'] }],
		},
	],
}

const steps = {
	async create() {
		await App.createApp({ app_name, org_slug: 'personal' })
		const made = await Promise.all(
			['iad', 'lhr'].map(region => Machine.createMachine({ app_name, region, config })),
		)
		const states = []
		for (const { id: machine_id, instance_id } of made) {
			await Machine.waitMachine({ app_name, machine_id, instance_id, state: 'started', timeout: '60s' })
			states.push((await Machine.getMachine({ app_name, machine_id })).state)
		}
		const [first, second] = made.map(machine => machine.id)
		const lease = await Machine.acquireLease({ app_name, machine_id: second, ttl: 3 })
		const held = await Machine.getLease({ app_name, machine_id: second })
		const events = await Machine.listEvents({ app_name, machine_id: first })
		fs.writeFileSync('state.json', JSON.stringify({ first, second }))
		return {
			first,
			second,
			states,
			lease: lease.data.nonce.length > 0 && lease.status === 'success' && held.status === 'success',
			events: events.map(event => event.type),
		}
	},
	async cordon() {
		return Machine.cordonMachine({ app_name, machine_id: load().first })
	},
	async uncordon() {
		return Machine.uncordonMachine({ app_name, machine_id: load().first })
	},
	async cycle() {
		const machine_id = load().first
		const { instance_id } = await Machine.getMachine({ app_name, machine_id })
		const states = []
		await Machine.stopMachine({ app_name, machine_id })
		await Machine.waitMachine({ app_name, machine_id, instance_id, state: 'stopped', timeout: '60s' })
		states.push((await Machine.getMachine({ app_name, machine_id })).state)
		await Machine.startMachine({ app_name, machine_id })
		await Machine.waitMachine({ app_name, machine_id, state: 'started', timeout: '60s' })
		states.push((await Machine.getMachine({ app_name, machine_id })).state)
		return { states }
	},
	async destroy() {
		// fly-admin shows no nonce, so a lease keeps it out, too, until it ends.
		const held = () => Machine.getLease({ app_name, machine_id: load().second }).then(() => true, () => false)
		while (await held()) await new Promise(resolve => setTimeout(resolve, 100))
		for (const machine_id of Object.values(load())) {
			await Machine.deleteMachine({ app_name, machine_id, force: true })
		}
		const left = (await Machine.listMachines(app_name)).length
		await App.deleteApp(app_name)
		const app = await App.getApp(app_name).then(() => 'still there', error => error.message.slice(0, 3))
		return { left, app }
	},
}

console.log(JSON.stringify(await steps[process.argv[2]]()))
