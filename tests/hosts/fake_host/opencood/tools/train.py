"""The loop of the contract: nothing of it can be configured, as in the hosts."""

import argparse
import statistics

import torch
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader

import opencood.hypes_yaml.yaml_utils as yaml_utils
from opencood.data_utils.datasets import build_dataset
from opencood.tools import train_utils


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hypes_yaml", required=True)
    parser.add_argument("--model_dir", default="")
    opt = parser.parse_args()
    hypes = yaml_utils.load_yaml(opt.hypes_yaml, opt)
    train_set = build_dataset(hypes, visualize=False, train=True)
    validation_set = build_dataset(hypes, visualize=False, train=False)
    size = hypes["train_params"]["batch_size"]
    train_loader = DataLoader(
        train_set,
        batch_size=size,
        num_workers=8,
        collate_fn=train_set.collate_batch_train,
        shuffle=True,
        drop_last=True,
    )
    validation_loader = DataLoader(
        validation_set,
        batch_size=size,
        num_workers=8,
        collate_fn=train_set.collate_batch_train,
        drop_last=True,
    )
    model = train_utils.create_model(hypes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = 0
    if opt.model_dir:
        saved_path = opt.model_dir
        first, model = train_utils.load_saved_model(saved_path, model)
    else:
        saved_path = train_utils.setup_train(hypes)
    model.to(device)
    criterion = train_utils.create_loss(hypes)
    optimizer = train_utils.setup_optimizer(hypes, model)
    scheduler = train_utils.setup_lr_schedular(hypes, optimizer, len(train_loader))
    writer = SummaryWriter(saved_path)
    for epoch in range(first, hypes["train_params"]["epoches"]):
        scheduler.step(epoch)
        for i, batch_data in enumerate(train_loader):
            model.train()
            model.zero_grad()
            optimizer.zero_grad()
            batch_data = train_utils.to_device(batch_data, device)
            output = model(batch_data["ego"])
            final_loss = criterion(output, batch_data["ego"]["label_dict"])
            criterion.logging(epoch, i, len(train_loader), writer)
            final_loss.backward()
            optimizer.step()
        torch.save(model.state_dict(), f"{saved_path}/net_epoch{epoch + 1}.pth")
        losses = []
        with torch.no_grad():
            for batch_data in validation_loader:
                model.eval()
                batch_data = train_utils.to_device(batch_data, device)
                output = model(batch_data["ego"])
                losses.append(criterion(output, batch_data["ego"]["label_dict"]).item())
        writer.add_scalar("Validate_Loss", statistics.mean(losses), epoch)


if __name__ == "__main__":
    main()
