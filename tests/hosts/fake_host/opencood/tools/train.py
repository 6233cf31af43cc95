"""The loop of the contract: nothing of it can be configured, as in the hosts."""

import argparse
import statistics

import tensorboardX
import torch
import torch.utils.data as torch_data

import opencood.data_utils.datasets as host_datasets
import opencood.hypes_yaml.yaml_utils as host_yaml
import opencood.tools.train_utils as tools


def batches(samples, size, **order):
    """Return the loader both splits use; shuffled where ``order`` says so."""
    together = samples.collate_batch_train
    return torch_data.DataLoader(
        samples, batch_size=size, num_workers=8, collate_fn=together, drop_last=True, **order
    )


def loss_of(batch, network, loss, where):
    """Return the loss of a batch."""
    ego = tools.to_device(batch, where)["ego"]
    return loss(network(ego), ego["label_dict"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hypes_yaml", required=True)
    parser.add_argument("--model_dir", default="")
    chosen = parser.parse_args()
    params = host_yaml.load_yaml(chosen.hypes_yaml, chosen)
    splits = [host_datasets.build_dataset(params, visualize=False, train=t) for t in (True, False)]
    size = params["train_params"]["batch_size"]
    learning, checking = batches(splits[0], size, shuffle=True), batches(splits[1], size)
    network = tools.create_model(params)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    begin, folder = 0, chosen.model_dir
    if folder:
        begin, network = tools.load_saved_model(folder, network)
    else:
        folder = tools.setup_train(params)
    network.to(where)
    loss = tools.create_loss(params)
    stepper = tools.setup_optimizer(params, network)
    rates = tools.setup_lr_schedular(params, stepper, len(learning))
    board = tensorboardX.SummaryWriter(folder)
    for epoch in range(begin, params["train_params"]["epoches"]):
        cosine = params["lr_scheduler"]["core_method"] == "cosineannealwarm"
        if cosine:
            rates.step_update(epoch * len(learning))
        else:
            rates.step(epoch)
        for number, batch in enumerate(learning):
            network.train()
            stepper.zero_grad()
            value = loss_of(batch, network, loss, where)
            loss.logging(epoch, number, len(learning), board)
            value.backward()
            stepper.step()
            if cosine:
                rates.step_update(epoch * len(learning) + number)
        torch.save(network.state_dict(), f"{folder}/net_epoch{epoch + 1}.pth")
        network.eval()
        with torch.no_grad():
            values = [loss_of(batch, network, loss, where).item() for batch in checking]
        board.add_scalar("Validate_Loss", statistics.mean(values), epoch)


if __name__ == "__main__":
    main()
